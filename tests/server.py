"""A web server of this machine, in place of where models are published."""

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves `files` by path; breaks off after so many bytes, once for each in `breaks`.

    What is `odd` answers by itself.

    Asked about the security of packages, it says what `vulnerable` holds and keeps their names.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.odd: dict[str, Callable[[Handler], None]] = {}
        self.breaks: list[int] = []
        self.ranges: list[str | None] = []
        self.vulnerable: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if odd := self.server.odd.get(self.path.lstrip("/")):
            self.close_connection = True
            with suppress(ConnectionError):  # the client has had enough
                odd(self)
            return
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(content) > 0 and wanted:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        part = content[start:]
        if self.server.breaks:
            part = part[: self.server.breaks.pop(0)]
        self.wfile.write(part)
        self.close_connection = True

    def do_POST(self) -> None:
        """Answer as osv.dev does about a package: what `vulnerable` holds of it."""
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = question["package"]["name"]
        self.server.asked.append(name)
        found = self.server.vulnerable.get(name)
        answer = json.dumps({"vulns": [found]} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Serve from a thread, on a free port."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def archived(folder: Path, name="pred_test") -> bytes:
    """The folder as a .tar.gz with that name inside."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, name)
    return stream.getvalue()
