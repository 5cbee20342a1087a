"""A hub on this machine, which takes one repository: what `push` asks of the real one, and no more."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants


class StandInHub:
    """What it was told, and how it is to answer."""

    def __init__(self) -> None:
        self.role, self.fails = "write", False
        self.made: dict[str, object] = {}  # how the repository was asked for
        self.files: dict[str, bytes] | None = None  # None: there is no repository yet
        self.asked: list[str] = []

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        path = path.partition("?")[0]
        self.asked.append(path)
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/repos/create":
            self.files, self.made = self.files or {}, json.loads(body)
            return 200, {"url": "https://huggingface.co/me/edited", "id": "me/edited"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if self.files is None:
            return 404, {}
        if path.endswith("/tree/main"):
            return 200, [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.files]
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if path.endswith("/commit/main"):
            return self._commit(body)
        return 404, {}

    def _commit(self, body: bytes) -> tuple[int, object]:
        if self.fails or self.files is None:
            return 403, {"error": "no room for this"}
        for line in body.splitlines():
            told = json.loads(line)
            if told["key"] == "deletedFile":
                del self.files[told["value"]["path"]]
            elif told["key"] == "file":
                self.files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
        return 200, {"commitUrl": "https://huggingface.co/me/edited/commit/" + "1" * 40, "commitOid": "1" * 40}


@contextmanager
def stand_in_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """Within, it is the one that huggingface_hub asks, with a token."""
    hub = StandInHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, content = hub.answer(self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(code)
            if code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
