"""A Google Cloud Storage in memory on localhost, as far as gcsfs, TensorStore, ArrayRecord and TensorBoard use it."""

import base64
import contextlib
import email
import hashlib
import http.server
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit


def environment_of(address: str) -> dict[str, str]:
    """The variables by which the libraries find a server in the place of Google's."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # TensorStore
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # ArrayRecord
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or gcsfs asks Google itself what kind of bucket this is
    }


class FakeGcs(http.server.ThreadingHTTPServer):
    """`address` answers; `objects` holds (generation, bytes) by bucket/name, and every bucket exists.

    It answers nothing while `silent` is set, and each request only after `delay` seconds.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}
        self.lock = threading.Lock()
        self.silent = False
        self.delay = 0.0
        self.generations = itertools.count(1)

    def put(self, name: str, data: bytes) -> None:
        """Stores the object bucket/name."""
        self.objects[name] = next(self.generations), data

    def get(self, name: str) -> bytes:
        """What the object bucket/name holds."""
        return self.objects[name][1]

    def names(self, prefix: str) -> list[str]:
        """All objects' bucket/name that begin with `prefix`."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def handle_error(self, *_: object) -> None:
        """Clients may hang up as they like."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the libraries find it."""
        return environment_of(self.address)


@contextlib.contextmanager
def fake_gcs() -> Iterator[FakeGcs]:
    """Runs a FakeGcs."""
    with FakeGcs() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeGcs

    def do_GET(self) -> None:
        path, query = self._target()
        self._body()
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            self._json(self._listing(match[1], query))
        elif re.fullmatch(r"/storage/v1/b/[^/]+(/storageLayout)?", path):
            bucket = path.split("/")[4]
            self._json({"kind": "storage#bucket", "id": bucket, "name": bucket, "locationType": "region"})
        elif (name := self._object(path)) not in self.server.objects:
            self._json({"error": {"code": 404, "message": f"No such object: {name}"}}, 404)
        elif path.startswith("/storage/v1/b/") and query.get("alt") != "media":
            self._json(self._resource(name))
        else:
            self._content(name)

    do_HEAD = do_GET  # noqa: N815  (as http.server calls it)

    def do_POST(self) -> None:
        path, query = self._target()
        if path.startswith("/session/"):
            return self.do_PUT()
        body = self._body()
        if path.startswith("/batch/"):
            return self._batch(body)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/(.+)", path):
            data = self.server.objects[f"{match[1]}/{unquote(match[2])}"][1]
            resource = self._store(f"{match[3]}/{unquote(match[4])}", data, query)
            return self._json({"kind": "storage#rewriteResponse", "done": True, "resource": resource} | resource)
        bucket = path.split("/")[5]
        if query["uploadType"] == "media":
            return self._stored(f"{bucket}/{query['name']}", body, query)
        if query["uploadType"] == "multipart":
            header = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
            about, content = email.message_from_bytes(header + body).get_payload()
            name = query.get("name") or json.loads(about.get_payload())["name"]
            return self._stored(f"{bucket}/{name}", content.get_payload(decode=True), query)
        name = query.get("name") or json.loads(body)["name"]
        session = str(len(self.server.uploads))
        self.server.uploads[session] = (f"{bucket}/{name}", query, bytearray())
        return self._json({}, headers={"Location": f"{self.server.address}/session/{session}"})

    def do_PUT(self) -> None:
        name, query, data = self.server.uploads[self.path.split("/")[-1].split("?")[0]]
        body = self._body()
        data += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self._json({}, 308, headers={"Range": f"bytes=0-{len(data) - 1}"})
        return self._stored(name, bytes(data), query)

    def do_DELETE(self) -> None:
        self._body()
        found = self.server.objects.pop(self._object(self._target()[0]), None)
        self._json({}, 204 if found else 404)

    def _target(self) -> tuple[str, dict[str, str]]:
        split = urlsplit(self.path)
        return split.path, {name: values[0] for name, values in parse_qs(split.query).items()}

    def _object(self, path: str) -> str:
        if match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", path):
            return f"{match[1]}/{unquote(match[2])}"
        return unquote(path.lstrip("/"))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _listing(self, bucket: str, query: dict[str, str]) -> dict[str, object]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for full in sorted(self.server.objects):
            owner, _, name = full.partition("/")
            if owner != bucket or not name.startswith(prefix):
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found:
                prefixes.add(prefix + inner + found)
            else:
                items.append(self._resource(full))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _resource(self, full: str) -> dict[str, object]:
        generation, data = self.server.objects[full]
        bucket, _, name = full.partition("/")
        return {
            "kind": "storage#object",
            "id": f"{full}/{generation}",
            "name": name,
            "bucket": bucket,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
        }

    def _store(self, full: str, data: bytes, query: dict[str, str]) -> dict[str, object] | None:
        with self.server.lock:
            wanted = query.get("ifGenerationMatch")
            if wanted not in (None, str(self.server.objects.get(full, (0,))[0])):
                return None
            self.server.objects[full] = next(self.server.generations), data
        return self._resource(full)

    def _stored(self, full: str, data: bytes, query: dict[str, str]) -> None:
        resource = self._store(full, data, query)
        self._json(resource or {"error": {"code": 412, "message": "conditionNotMet"}}, 200 if resource else 412)

    def _content(self, full: str) -> None:
        generation, data = self.server.objects[full]
        headers = {"x-goog-generation": str(generation), "x-goog-metageneration": "1", "ETag": str(generation)}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            begin = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
            end = min(int(match[2]) + 1 if match[1] and match[2] else len(data), len(data))
            if begin >= len(data):
                return self._send(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            return self._send(data[begin:end], 206, headers)
        return self._send(data, 200, headers)

    def _batch(self, body: bytes) -> None:
        """Deletes what the parts of a batch name."""
        parts = re.findall(rb"content-id: *(\S+).*?DELETE (\S+)", body, re.I | re.S)
        answers = []
        for number, target in parts:
            found = self.server.objects.pop(self._object(urlsplit(target.decode()).path), None)
            status = "204 No Content" if found else "404 Not Found"
            answers.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: <response-{number.decode().strip('<>')}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        self._send(("".join(answers) + "--b--").encode(), 200, {"Content-Type": "multipart/mixed; boundary=b"})

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = b"" if status in (204, 308) else json.dumps(content).encode()
        self._send(body, status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        time.sleep(self.server.delay)
        while self.server.silent:
            time.sleep(0.05)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
