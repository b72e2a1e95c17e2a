"""The server of the demonstration page: what it serves, and what it does not."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoformer.runtime import demo
from isoformer.runtime.errors import InputError, IsoformerError, PackageError


@pytest.fixture
def js(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like runtime/js, with the npm packages in it."""
    folder = tmp_path / "js"
    for name in demo.LIBRARIES:
        (folder / "node_modules" / name).mkdir(parents=True)
    (folder / "demo").mkdir()
    (folder / "demo" / "index.html").write_text("the page")
    (folder / "src").mkdir()
    (folder / "src" / "a.js").write_text("export {};")
    monkeypatch.setattr(demo, "JS", folder)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "isoformer.json").write_text("{}")
    return folder


@pytest.fixture
def port(js: Path, package: Path) -> Iterator[int]:
    assert js.is_dir()
    with demo.serve([package], port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def test_page_packages_and_headers(port: int) -> None:
    status, body, headers = get(port, "/demo/")
    assert (status, body) == (200, b"the page")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"  # threads need these two
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert get(port, "/")[0] == 302
    assert get(port, "/src/a.js")[2]["Content-type"] == "text/javascript"
    (address,) = json.loads(get(port, "/demo/packages.json")[1])
    assert get(port, f"{address}isoformer.json")[:2] == (200, b"{}")


@pytest.mark.parametrize(
    "path",
    [
        "/src/",
        "/packages/",
        "/packages/1-x/isoformer.json",
        "/../package",
        "/packages/1-a%20b/..%2f..%2fsecret",
        "/%00",
    ],
)
def test_nothing_else(port: int, package: Path, path: str) -> None:
    (package.parent / "secret").write_text("secret")
    assert get(port, path)[0] == 404


def test_refusals(js: Path, package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"nothing is not a package: it has no isoformer.json"):
        demo.serve([tmp_path / "nothing"])
    with demo.serve([package], port=0) as server, pytest.raises(InputError, match="choose another --port"):
        demo.serve([package], port=server.server_address[1])
    (js / "node_modules" / "onnxruntime-web").rmdir()
    with pytest.raises(
        IsoformerError, match=rf"onnxruntime-web is not installed: npm ci .* --prefix {re.escape(str(js))}"
    ):
        demo.serve([package])


def test_the_page_names_files_that_there_are() -> None:
    folder = Path(demo.__file__).resolve().parent / "js"
    page = (folder / "demo" / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:href|src)="([\w.]+)"', page)
    assert {"style.css", "main.js"} <= set(named)
    modules = [*(folder / "demo").glob("*.js"), *(folder / "src").rglob("*.js"), folder / "index.js"]
    for module in modules:
        for name in re.findall(r'from "(\.[^"]+)"', module.read_text(encoding="utf-8")):
            assert (module.parent / name).is_file(), f"{module.name} imports {name}"
