"""`isoformer serve-demo`: the demonstration page of the JavaScript runtime and packages for it, for this machine."""

import json
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from isoformer.runtime.errors import InputError, IsoformerError, PackageError
from isoformer.runtime.package import MANIFEST

JS = Path(__file__).resolve().parent / "js"
PAGE, PACKAGES = "/demo/", "/packages/"
LIST = f"{PAGE}packages.json"
LIBRARIES = ("onnxruntime-web", "@huggingface/tokenizers")
# The first two let WebAssembly have threads; the last keeps the page from every other place.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:",
}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


def serve(packages: Sequence[Path], host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """A server that listens, with the page under /demo/; the caller runs it and closes it. port 0 takes a free one.

    Raises PackageError for a folder that is no package, IsoformerError where npm's packages are missing, and InputError
    for a port that is taken.
    """
    if missing := [name for name in LIBRARIES if not (JS / "node_modules" / name).is_dir()]:
        raise IsoformerError(f"{', '.join(missing)} is not installed: npm ci --ignore-scripts --prefix {JS}")
    for path in packages:
        if not (path / MANIFEST).is_file():
            raise PackageError(f"{path} is not a package: it has no {MANIFEST} (make one with: isoformer export)")
    folders = {f"{number}-{path.resolve().name}": path.resolve() for number, path in enumerate(packages, 1)}
    try:
        return ThreadingHTTPServer((host, port), partial(Handler, folders))
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened at ({error}); choose another --port") from None


class Handler(SimpleHTTPRequestHandler):
    """Files of the page and of the packages, nothing else of the disk, and no lists of folders."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def __init__(self, folders: dict[str, Path], *arguments: Any) -> None:
        self.folders = folders
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in ("/", "/demo"):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", PAGE)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == LIST:
            body = json.dumps([f"{PACKAGES}{quote(name)}/" for name in self.folders]).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        """The file that the path of an address means; one that is not there for what may not be read."""
        parts = [part for part in unquote(urlsplit(path).path).split("/") if part]
        if not parts or ".." in parts or any("\0" in part or "\\" in part for part in parts):
            return str(JS / "none")
        root = JS
        if parts[0] == PACKAGES.strip("/"):
            root = self.folders.get(parts[1] if len(parts) > 1 else "", JS / "none")
            parts = parts[2:]
        elif parts == [PAGE.strip("/")]:
            parts.append("index.html")
        return str(root.joinpath(*parts))

    def list_directory(self, path: Any) -> None:  # noqa: ARG002  as the class that it overrides has it
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""
