"""A hub on this machine: what huggingface_hub asks of the real one, answered from folders. No network."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@contextlib.contextmanager
def serve(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Models are the folders `root/ORG/NAME`. Yields the files that were downloaded, in their order."""
    from huggingface_hub import constants

    taken: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(root, taken))
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in (("ENDPOINT", address), ("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        server.shutdown()
        server.server_close()


def _handler(root: Path, taken: list[str]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                return self._describe(root.joinpath(*parts[2:4]))
            file = root.joinpath(*parts[:2], *parts[4:])  # ORG/NAME/resolve/REVISION/FILE
            if not file.is_file():
                return self.send_error(404)
            data = file.read_bytes()
            if body:
                taken.append("/".join(parts[4:]))
            self._send(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, body)

        def _describe(self, model: Path) -> None:
            if not model.is_dir():
                return self.send_error(404)
            files = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
            facts = {"id": "/".join(model.parts[-2:]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            rows = [{"type": "file", "path": name, "size": (model / name).stat().st_size, "oid": COMMIT} for name in files]
            self._send(json.dumps(rows if "/tree/" in self.path else facts).encode(), {"Content-Type": "application/json"}, True)

        def _send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
