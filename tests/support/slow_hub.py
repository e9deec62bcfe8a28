"""A model hub on loopback whose files never end: what a first download looks like on a bad line."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("config.json", "tokenizer.json", "model.safetensors")
_NUM_BYTES = 1 << 30
_PAUSE_S = 0.2


class SlowHub:
    """`url` is its address; `is_asked` is set with the first byte of a file."""

    def __init__(self) -> None:
        self.url = ""
        self.is_asked = threading.Event()
        self.is_over = threading.Event()


@contextmanager
def slow_hub() -> Iterator[SlowHub]:
    hub = SlowHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:  # noqa: ANN401
            pass

        def do_HEAD(self) -> None:
            self._headers()

        def do_GET(self) -> None:
            if self.path.startswith("/api/"):
                self._answer(_api(self.path))
                return
            self._headers()
            try:
                while not hub.is_over.is_set():
                    self.wfile.write(b" ")
                    hub.is_asked.set()
                    hub.is_over.wait(_PAUSE_S)
            except OSError:  # who asked is gone
                pass

        def _headers(self) -> None:
            self.send_response(200)
            self.send_header("ETag", '"0"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(_NUM_BYTES))
            self.end_headers()

        def _answer(self, what: object) -> None:
            body = json.dumps(what).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.is_over.set()
            server.shutdown()
            thread.join()


def _api(path: str) -> object:
    if "/tree/" in path:
        return [
            {"type": "file", "path": name, "size": _NUM_BYTES, "oid": "0" * 40} for name in NAMES
        ]
    return {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in NAMES]}
