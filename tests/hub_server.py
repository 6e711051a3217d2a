"""A stand-in for the Hugging Face Hub: repositories of files, as its library asks for them over HTTP.

Files travel within the commit; the real Hub stores large ones apart (LFS, Xet).
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "1" * 40


class HubServer:
    """`files` holds the content of every file by repository and name; `url` is the address of the server."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def answer(self, content, status=200, **headers):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                hub.asked.append(self.path)
                if found := re.match(r"/api/models/([^/]+/[^/]+)(?:/revision/([^?]+))?", self.path):
                    if found[1] not in hub.files:
                        return self.missing("RepoNotFound")
                    siblings = [{"rfilename": name} for name in hub.files[found[1]]]
                    tree = [{"type": "file", "path": name, "size": len(data), "oid": sha(data)}
                            for name, data in hub.files[found[1]].items()]  # fmt: skip
                    if "/tree/" in self.path:
                        return self.answer(tree)
                    return self.answer({"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": siblings,
                                        "private": False, "tags": []})  # fmt: skip
                if found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
                    data = hub.files.get(found[1], {}).get(found[3])
                    if data is None:
                        return self.missing("EntryNotFound")
                    return self.answer(data, ETag=f'"{sha(data)}"', X_Repo_Commit=COMMIT)
                return self.missing("EntryNotFound")

            def missing(self, code):
                self.answer({"error": "not found"}, 404, X_Error_Code=code)

            def do_POST(self):
                hub.asked.append(self.path)
                body = self.body()
                if self.path == "/api/repos/create":
                    given = json.loads(body)
                    repo = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
                    hub.files.setdefault(repo, {})
                    return self.answer({"url": f"{hub.url}/{repo}"})
                if "/preupload/" in self.path:
                    files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                             for one in json.loads(body)["files"]]  # fmt: skip
                    return self.answer({"files": files})
                if found := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
                    for line in body.splitlines():
                        one = json.loads(line)
                        if one["key"] == "file":
                            hub.files[found[1]][one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                    return self.answer(
                        {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{found[1]}/commit/{'1' * 40}"}
                    )
                return self.answer({})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()


def sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
