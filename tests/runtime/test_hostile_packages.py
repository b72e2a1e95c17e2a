"""Packages that somebody made to do harm, each refused in one line. docs/security.md lists them by these names."""

import json
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from isoformer.runtime import Session, cli, load, template, verify
from isoformer.runtime.chat import Chat
from isoformer.runtime.errors import IsoformerError, PackageError
from isoformer.runtime.package import MANIFEST, WEIGHTS, Package, Signature, sha256
from isoformer.runtime.relations import relations
from isoformer.runtime.template import Environment, render
from isoformer.runtime.text import text_encoder
from isoformer.runtime.verify import read_grid

ROOT = Path(__file__).resolve().parents[2]
Spoil = Callable[[Path], Any]


def edit(package: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (package / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def sign(package: Path, *names: str) -> None:
    """Lists the files with their true digests, as somebody would who knows the format."""
    edit(package, lambda manifest: manifest["files"].update({name: sha256(package / name) for name in names}))


def says(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The manifest, changed."""
    return lambda package: edit(package, change)


def raw(change: Callable[[str], str]) -> Spoil:
    """The manifest's text, changed."""

    def spoil(package: Path) -> None:
        file = package / MANIFEST
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")

    return spoil


def listed(name: str, digest: Any = "0" * 64) -> Spoil:
    return says(lambda manifest: manifest["files"].update({name: digest}))


def signature(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return says(lambda manifest: change(manifest["signature"]))


def link(name: str, target: str, *, keep: bool = False) -> Spoil:
    """A symbolic link in place of what stands there; keep: what stood there stands at the link's end, outside."""

    def spoil(package: Path) -> None:
        place = package / name
        outside = package.parent / "outside"
        if keep:
            shutil.move(place, outside)
        elif place.exists():
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(outside if keep else target)

    return spoil


def graph(change: Callable[[onnx.ModelProto], Any]) -> Spoil:
    def spoil(package: Path) -> None:
        model = onnx.load(package / "model.onnx", load_external_data=False)
        change(model)
        (package / "model.onnx").write_bytes(model.SerializeToString())
        sign(package, "model.onnx")

    return spoil


def bytes_behind(content: bytes) -> Spoil:
    """Bytes behind the graph's own: protocol buffers merge them."""

    def spoil(package: Path) -> None:
        file = package / "model.onnx"
        file.write_bytes(file.read_bytes() + content)
        sign(package, "model.onnx")

    return spoil


def field(number: int, content: bytes, more: int = 0) -> bytes:
    """A field of protocol buffers. more: bits above the 32 of the key, which its readers drop."""

    def varint(value: int) -> bytes:
        found = bytearray()
        while value > 127:
            found.append(value & 127 | 128)
            value >>= 7
        return bytes([*found, value])

    return varint(number << 3 | 2 | more << 32) + varint(len(content)) + content


def external(location: str) -> bytes:
    """A model with a tensor whose data are elsewhere."""
    entry = field(1, b"location") + field(2, location.encode())
    return field(7, field(5, field(13, entry)))


def nested_graphs(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = field(1, field(5, field(6, inner)))
    return field(7, inner)


def outside_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../outside"), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def many_files(manifest: dict[str, Any]) -> None:
    manifest["files"] |= {f"{number}": "0" * 64 for number in range(10_001)}


def shadow_weights(package: Path) -> None:
    variant = next(iter(json.loads((package / MANIFEST).read_text(encoding="utf-8"))["variants"].values()))
    (package / variant["path"]).with_name(WEIGHTS).write_bytes(b"other weights")


def sized(axis: str, **bounds: Any) -> Spoil:
    return signature(lambda found: found["axes"][axis].update(bounds))


def first_input(**changes: Any) -> Spoil:
    return signature(lambda found: found["inputs"][0].update(changes))


OUT = "leads out of the package"
# What `load` refuses: name → how a good package is spoiled, and what the line says.
LOADED: dict[str, tuple[Spoil, str]] = {
    # the manifest as a file
    "manifest that is a link out of the folder": (link(MANIFEST, "", keep=True), OUT),
    "manifest of more than 64 MiB": (
        lambda package: os.truncate(package / MANIFEST, 2**26 + 1),
        "more than 67,108,864",
    ),
    "manifest nested 100,000 deep": (raw(lambda text: "[" * 100_000 + text), "nested too deeply"),
    "key that stands twice": (raw(lambda text: text.replace("{", '{"name": "a", ', 1)), "the key 'name' twice"),
    "NaN": (raw(lambda text: text.replace('"opset": 23', '"opset": NaN')), "NaN is no JSON"),
    "number beyond a float": (raw(lambda text: text.replace('"opset": 23', '"opset": 1e999')), "too large"),
    "number of 5,000 digits": (raw(lambda text: text.replace('"opset": 23', f'"opset": {"9" * 5000}')), "5000 digits"),
    "control characters": (says(lambda manifest: manifest.update(name="a\x1b[2J")), "control characters"),
    "manifest that is a list": (raw(lambda text: f"[{text}]"), "no schema number"),
    # names of files
    "file name with ..": (listed("../outside"), OUT),
    "file name with .. inside": (listed("variants/../README.md"), OUT),
    "absolute file name": (listed("/etc/hostname"), OUT),
    "drive letter": (listed("C:/outside"), OUT),
    "backslash": (listed("a\\..\\outside"), "not a plain file name"),
    "alternative data stream": (listed("README.md:x"), "not a plain file name"),
    "detour": (listed("./README.md"), "not a plain file name"),
    "wildcard": (listed("*"), "not a plain file name"),
    "names that differ in capital letters": (listed("readme.md"), "capital letters"),
    "digest that is none": (listed("README.md", "x"), "a SHA-256"),
    "10,001 files": (says(many_files), "10000 names"),
    "file that is not there": (listed("nowhere"), "nowhere is missing"),
    "changed file": (lambda package: (package / "README.md").write_text("other"), "SHA-256 differs"),
    # links, whether they are listed or not
    "file that is a link out": (link("README.md", "", keep=True), OUT),
    "tokenizer that is a link out": (link("tokenizer.json", "/etc/hostname"), OUT),
    "golden vectors that are a link out": (link("test_data_set_0", "", keep=True), OUT),
    "variants that are a link out": (link("variants", "", keep=True), OUT),
    "weights that are a link out": (link(WEIGHTS, "", keep=True), OUT),
    "link out that nobody lists": (link("more", "/etc"), OUT),
    "link to itself": (link("README.md", "README.md"), "README.md"),
    "pipe in place of a file": (lambda p: ((p / "README.md").unlink(), os.mkfifo(p / "README.md")), "is missing"),
    # what a graph names
    "weights at ..": (graph(outside_data), OUT),
    "weights at an absolute path": (bytes_behind(external("/etc/hostname")), OUT),
    "weights at a drive": (bytes_behind(external("C:\\x")), OUT),
    "weights that are not listed": (bytes_behind(external("other.bin")), "does not list"),
    "weights at an address in memory": (bytes_behind(external("*/_ORT_MEM_ADDR_/*")), "not a plain file name"),
    "weights without a place": (bytes_behind(external("")), "not a plain file name"),
    "weights of a training graph": (
        bytes_behind(field(20, field(1, field(5, field(13, field(1, b"location") + field(2, b"../x")))))),
        OUT,
    ),
    "weights behind a key of 33 bits": (
        bytes_behind(field(7, field(5, field(13, field(1, b"location") + field(2, b"/etc/x"), more=1)))),
        "there is no field",
    ),
    "weights behind a second key of another type": (
        bytes_behind(field(7, field(5, field(13, field(1, b"location") + field(2, b"/etc/x") + b"\x08\x01\x10\x01")))),
        OUT,
    ),
    "unlisted weights beside a variant": (shadow_weights, "would take the place"),
    "graph nested 100 deep": (bytes_behind(nested_graphs(100)), "more than 64 deep"),
    "200,001 nodes": (bytes_behind(field(7, b"\x0a\x00" * 200_001)), "more than 200,000 nodes"),
    "graph that is no graph": (
        lambda p: ((p / "model.onnx").write_bytes(b"\xff" * 20), sign(p, "model.onnx")),
        "is not an ONNX file",
    ),
    "graph that is not listed": (
        says(lambda manifest: manifest["files"].pop("model.onnx")),
        "does not list model.onnx",
    ),
    "variant at ..": (says(lambda m: m["variants"]["cpu-float32"].update(path="../x.onnx")), OUT),
    "variant that is not listed": (says(lambda m: m["variants"]["cpu-float32"].update(path="x.onnx")), "not among"),
    "precision that there is not": (says(lambda manifest: manifest.update(precision="weird")), "precision is 'weird'"),
    "variant of a precision that there is not": (
        says(lambda m: m["variants"]["cpu-float32"].update(precision="weird")),
        "precision is 'weird'",
    ),
    "golden vectors at ..": (says(lambda m: m["golden"].update({"../x": m["golden"]["test_data_set_0"]})), "not among"),
    # sizes that lie
    "axis of 10^12": (first_input(axes=["batch_size", 10**12]), "from 0 to 2147483648"),
    "least size of 10^9": (sized("sequence_length", min=10**9, max=None), "values at least"),
    "sizes that multiply": (first_input(axes=[70_000, 70_000]), "values at least"),
    "axis repeated 10^9 times": (sized("sequence_length", sum_of=["batch_size"], times=10**9), "times"),
    "axis that is the sum of itself": (sized("sequence_length", sum_of=["sequence_length"]), "no plain axis"),
    "axis that ends before it begins": (sized("sequence_length", min=9, max=3), "goes from 9 to 3"),
    "axis that is not there": (first_input(axes=["batch_size", "nowhere"]), "not among the axes"),
    "nine axes": (first_input(axes=["batch_size"] * 9), "8 values"),
    "negative axis": (first_input(axes=["batch_size", -1]), "axes[1]"),
    "unknown dtype": (first_input(dtype="object"), "dtype is 'object'"),
    "numbers from 5 to 2": (first_input(low=5, high=2), "from 5 to 2"),
    "input that stands twice": (signature(lambda s: s["inputs"].append(s["inputs"][0])), "a name twice"),
    "unknown key of an input": (first_input(reader="os.system"), "unknown key 'reader'"),
    "golden shape of 65 axes": (
        says(lambda m: m["golden"]["test_data_set_0"]["sentence_embedding"].update(shape=[1] * 65)),
        "64",
    ),
    "labels that are no list": (
        says(lambda m: m.update(task={"name": "classify", "labels": "x", "problem": "y"})),
        "task.labels",
    ),
    "task without its settings": (says(lambda m: m.update(task={"name": "transcribe"})), "task lacks"),
}


@pytest.fixture
def package(copy_package: Callable[..., Path]) -> Path:
    return copy_package()


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("name", LOADED)
def test_refused(package: Path, name: str) -> None:
    spoil, words = LOADED[name]
    spoil(package)
    with pytest.raises(PackageError) as error:
        load(package)
    assert words in one_line(error)


WRONG: list[Any] = [None, True, -1, 2**70, 1.5, "x", [], ["x"], {}, {"x": 1}, [[[]]]]


def test_every_entry_of_the_manifest_of_another_type(package: Path) -> None:
    """Loads or is refused in one line, whatever stands in place of any one entry; and what loads can be shown."""
    good = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    places: list[tuple[Any, Any]] = [(good, key) for key in good if key != "files"]
    for parent, key in places:
        inner = parent[key]
        children = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        places += [(inner, child) for child in list(children)[:3]]
    tried = 0
    for parent, key in places:
        before = parent[key]
        parent[key] = WRONG[tried % len(WRONG)]
        tried += 1
        (package / MANIFEST).write_text(json.dumps(good), encoding="utf-8")
        try:
            found = load(package)
        except PackageError as error:
            assert str(error).isprintable(), error  # noqa: PT017  # either way is right
        else:
            for part in found.graphs.values():
                assert [*cli._facts(found), *cli._graph_facts(part)]
        parent[key] = before
    assert tried > 150


# ------------------------------------------------------------------------------------------ what is read later


def npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(member: bytes, method: int = zipfile.ZIP_DEFLATED) -> Spoil:
    """parity.npz with other content for all its arrays."""

    def spoil(package: Path) -> None:
        with zipfile.ZipFile(package / "parity.npz") as old:
            names = old.namelist()
        with zipfile.ZipFile(package / "parity.npz", "w", method) as new:
            for name in names:
                new.writestr(name, member)
        sign(package, "parity.npz")

    return spoil


def bomb(package: Path) -> None:
    """An archive whose index says that its first array unpacks to 2 GiB."""
    file = package / "parity.npz"
    content = bytearray(file.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 2**31)
    file.write_bytes(content)
    sign(package, "parity.npz")


def tensor(*, dims: list[int], content: bytes = b"") -> Spoil:
    def spoil(package: Path) -> None:
        made = TensorProto(dims=dims, data_type=TensorProto.FLOAT, raw_data=content)
        (package / "test_data_set_0/input_0.pb").write_bytes(made.SerializeToString())
        sign(package, "test_data_set_0/input_0.pb")

    return spoil


PICKLED = npy("|O", "(1,)", pickle.dumps([1]))
# What verification reads: name → how a good package is spoiled, and what the line says.
READ: dict[str, tuple[Spoil, str]] = {
    "archive with a pickle": (archive(PICKLED), "not numbers"),
    "archive with an array of 10^12": (archive(npy("<f4", "(1000000000000,)")), "is not what it holds"),
    "archive with a negative size": (archive(npy("<f4", "(-1,)")), "is not what it holds"),
    "archive that unpacks to 2 GiB": (bomb, "unpacks to"),
    "archive in another compression": (archive(npy("<f4", "(0,)"), zipfile.ZIP_LZMA), "not deflate"),
    "archive that is none": (
        lambda p: ((p / "parity.npz").write_bytes(b"PK"), sign(p, "parity.npz")),
        "not a zip file",
    ),
    "archive that is not listed": (says(lambda manifest: manifest["files"].pop("parity.npz")), "does not list parity"),
    "vector of 10^12 values": (tensor(dims=[10**6, 10**6], content=b"0000"), "is not a float32 tensor"),
    "vector of a million axes": (tensor(dims=[2] * 10**6), "more than 32 axes"),
    "vector of a negative size": (tensor(dims=[-1]), "is not a float32 tensor"),
}


@pytest.mark.parametrize("name", READ)
def test_refused_when_it_is_read(package: Path, name: str) -> None:
    spoil, words = READ[name]
    spoil(package)
    loaded = load(package)
    with pytest.raises(PackageError) as error:
        _ = [*loaded.golden(), *read_grid(loaded)]
    assert words in one_line(error)


def long_name(package: Path) -> None:
    """The first array has another name in front of its data, of 60,000 characters."""
    file = package / "parity.npz"
    content = bytearray(file.read_bytes())
    content[26:28] = struct.pack("<H", min(60_000, len(content) - 100))
    file.write_bytes(content)
    sign(package, "parity.npz")


def test_an_error_that_quotes_the_archive_is_short(package: Path) -> None:
    long_name(package)
    with pytest.raises(PackageError) as error:
        list(read_grid(load(package)))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2500


def test_a_pickle_is_not_loaded(package: Path, tmp_path: Path) -> None:
    """Whatever way leads to the archive: the file that the pickle would make is not there."""

    class Make:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "made",)

    archive(npy("|O", "(1,)", pickle.dumps(Make())))(package)
    with pytest.raises(IsoformerError):
        list(read_grid(load(package)))
    assert not (tmp_path / "made").exists()


def lying_weights(package: Path) -> None:
    graph(lambda model: next(t for t in model.graph.initializer if t.dims).dims.__setitem__(0, 2**40))(package)


def other_graph(package: Path) -> None:
    """A graph that is none of the signature's."""
    edge = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [edge],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
    )
    made.ir_version = 10
    made.opset_import[0].version = 23
    (package / "model.onnx").write_bytes(made.SerializeToString())
    sign(package, "model.onnx")


OPENED: dict[str, tuple[Spoil, str]] = {
    "weights of a shape that lies": (lying_weights, "ONNX Runtime cannot open"),
    "graph of another model": (other_graph, "the manifest says"),
}


@pytest.mark.parametrize("name", OPENED)
def test_refused_when_it_is_opened(package: Path, name: str) -> None:
    spoil, words = OPENED[name]
    spoil(package)
    with pytest.raises(PackageError) as error:
        Session(package)
    assert words in one_line(error)


def nan_weights(package: Path) -> None:
    """The largest weight is NaN: in model.onnx or in model.onnx_data."""
    model = onnx.load(package / "model.onnx")
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = np.full(len(weights.raw_data) // 4, np.nan, np.float32).tobytes()
    (package / "model.onnx").write_bytes(model.SerializeToString())
    sign(package, "model.onnx")


def test_nan_weights_fail_verification(package: Path) -> None:
    nan_weights(package)
    loaded = load(package)
    report = verify.verify(loaded, Session(loaded).run, "ort", seed=1)
    assert not report.passed
    assert any("NaN" in failure.line() for failure in report.failures)


def test_parts_that_do_not_belong_together(package: Path) -> None:
    edit(package, lambda m: m["variants"]["cpu-float32"].update(zero_at_padding=["sentence_embedding"]))  # has 2 axes
    loaded = load(package)
    with pytest.raises(PackageError, match="do not belong together") as error:
        verify.verify(loaded, Session(loaded).run, "ort", seed=1, variant="cpu-float32")
    one_line(error)


@pytest.mark.parametrize("kind", [KeyError, TypeError, ValueError, MemoryError, RuntimeError])
def test_an_error_of_what_is_verified_stays_what_it_is(package: Path, kind: type[Exception]) -> None:
    def run(_inputs: Any) -> Any:
        raise kind("a defect")

    with pytest.raises(kind, match="a defect") as error:
        verify.verify(load(package), run, "ort", seed=1)
    assert error.type is kind


def test_inputs_that_are_too_large_to_draw(package: Path) -> None:
    """Sizes may fit the form and not the memory: verification says so before it reserves them."""
    first_input(axes=["batch_size", "sequence_length", 2**26])(package)
    loaded = load(package)
    drawn = next(iter(relations(loaded.signature, {}, dict, "ort", np.random.default_rng(0))))
    assert "too many values to be drawn" in drawn.note


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (first_input(high=None), "none can be drawn"),
        (signature(lambda found: found.update(chunked=True)), "is chunked"),
    ],
)
def test_signatures_that_no_inputs_can_be_drawn_for(package: Path, spoil: Spoil, words: str) -> None:
    spoil(package)
    loaded = load(package)
    report = verify.verify(loaded, Session(loaded).run, "ort", seed=1)
    assert not report.passed
    assert all(words in failure.line() for failure in report.failures)


# ------------------------------------------------------------------------------------------ texts


@pytest.fixture
def talker(generator_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(generator_package, tmp_path / "talker"))


def test_a_tokenizer_that_is_not_listed_is_not_opened(talker: Path) -> None:
    edit(talker, lambda manifest: manifest["files"].pop("tokenizer.json"))
    with pytest.raises(PackageError, match="has no tokenizer"):
        text_encoder(Session(talker))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 10**5, b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}']
)
def test_a_tokenizer_that_cannot_be_read(talker: Path, content: bytes) -> None:
    (talker / "tokenizer.json").write_bytes(content)
    sign(talker, "tokenizer.json")
    with pytest.raises(PackageError) as error:
        text_encoder(Session(talker))
    assert "tokenizer.json cannot be read" in one_line(error)


@pytest.mark.parametrize("ids", ['"x"', "[[1]]", "[{}]", "1.5", "true"])
def test_ends_that_are_no_ids(talker: Path, ids: str) -> None:
    (talker / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
    sign(talker, "generation_config.json")
    with pytest.raises(PackageError, match="eos_token_id"):
        Chat(Session(talker))


LONG = "{% set n = namespace(x='a') %}{% for i in range(22) %}{% set n.x = n.x + n.x %}{% endfor %}"
TEMPLATES = {
    "loops in loops": ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
    "text of a terabyte": ("{{ 'x' * 999999999999 }}", "repeated too often"),
    "text that doubles": (
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "a text of",
    ),
    "list that doubles": (
        "{% set n = namespace(x=[1, 2]) %}{% for i in range(26) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "a list of",
    ),
    "text that is added to itself": (
        "{% set n = namespace(x='ab') %}{% for i in range(26) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "a text of",
    ),
    "text joined of 900": (f"{LONG}{{% set x = {' ~ '.join(['n.x'] * 900)} %}}", "a text of"),
    "block of 999 texts": (
        f"{LONG}{{% set x %}}{{% for i in range(999) %}}{{{{ n.x }}}}{{% endfor %}}{{% endset %}}",
        "characters",
    ),
    "parts of a long text that are kept": (
        f"{LONG}{{% set n.l = [] %}}{{% for i in range(9999) %}}{{% set n.l = n.l + [n.x[1:]] %}}{{% endfor %}}",
        "characters in all",
    ),
    "power of powers": ("{{ 9**9**9 }}", "power"),
    "width of a gigabyte": ("{{ '%999999999d' % 1 }}", "width"),
    "width of a gigabyte in format": ("{{ '{:>999999999}'.format(1) }}", "width"),
    "width of a filter": ("{{ 'a' | center(999999999) }}", "too large for an argument"),
    "replacement by long texts": ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "too long"),
    "Python's insides": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "Python's globals": ("{{ raise_exception.__globals__.os }}", "unsafe"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str) -> None:
    import jinja2

    source, words = TEMPLATES[name]
    with pytest.raises(jinja2.TemplateError, match=words):
        render(Environment().from_string(source))


def test_a_template_that_compares_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    monkeypatch.setattr(template, "MAX_SECONDS", 0.3)
    longer = "{% set y = n.x[1:2000000] ~ 'b' %}{% for i in range(99999) %}{% if y in n.x %}{% endif %}{% endfor %}"
    with pytest.raises(jinja2.TemplateError, match="seconds"):
        render(Environment().from_string(LONG + longer))


def test_parts_sums_and_joins_are_those_of_jinja2() -> None:
    import jinja2

    source = (
        "{{ 'abcdef'[1:5:2] }} {{ t[1:] }} {{ t[:-1] }} {{ t[::-1] }} {{ l[n:][:1] }} {{ l + [5] }} {{ 1 + n }}"
        " {{ t + 'x' }} {{ t ~ n ~ none ~ l }} {{ (1, 2) + (n,) }} {{ l[0] }} {{ d['a'] }}"
        " {{ t[9:] ~ l[9:] }} {{ 1.5 + n }}"
    )
    values: dict[str, Any] = {"t": "é fox", "l": [1, 2, 3], "n": 1, "d": {"a": 7}}
    plain = jinja2.Environment().from_string(source)  # noqa: S701  # no page is made
    assert render(Environment().from_string(source), **values) == plain.render(values)


def test_a_long_dialogue_is_within_the_budget() -> None:
    source = (
        "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x + m['content'] %}{% endfor %}{{ n.x }}"
    )
    messages = [{"content": "word " * 200}] * 500
    assert render(Environment().from_string(source), messages=messages) == "word " * 100_000


def test_a_template_that_reads_files(talker: Path) -> None:
    config = {"chat_template": "{% include '/etc/hostname' %}"}
    (talker / "tokenizer_config.json").write_text(json.dumps(config))
    sign(talker, "tokenizer_config.json")
    with pytest.raises(PackageError, match="no loader"):
        list(Chat(Session(talker)).say("hello"))


# ------------------------------------------------------------------------------------------ every command


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "run", "bench", "chat", "batch", "serve", "attention", "tune", "convert"]
)
@pytest.mark.parametrize(
    "name",
    [
        "link out that nobody lists",
        "axis of 10^12",
        "manifest nested 100,000 deep",
        "variant of a precision that there is not",
    ],
)
def test_every_command(package: Path, tmp_path: Path, monkeypatch, capsys, command: str, name: str) -> None:
    LOADED[name][0](package)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    more = {"run": ["a"], "batch": [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")], "serve": ["--port", "0"]}
    more["attention"] = ["--png", str(tmp_path / "x.png"), "a"]
    more["convert"] = [str(tmp_path / "js"), "--layout", "transformers.js"]
    monkeypatch.setattr(sys, "argv", ["isoformer", command, str(package), *more.get(command, [])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert re.fullmatch(r"isoformer: [^\n]+\n", said.err)


def test_markup_in_a_package_is_text(package: Path, monkeypatch, capsys) -> None:
    edit(package, lambda manifest: manifest.update(name="[/bold] :smile: [red]x", family="[/]"))
    monkeypatch.setattr(sys, "argv", ["isoformer", "inspect", str(package)])
    cli.app(standalone_mode=False)
    assert "[/bold] :smile: [red]x" in capsys.readouterr().out


def test_the_page_lists_them_all() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    for name, (_, words) in (LOADED | READ | OPENED).items():
        assert f"| {name} | " in page, name
        assert words.replace("|", "\\|") in page, name


def test_a_package_that_is_being_written_has_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    found = Package(tmp_path, {}, Signature((), (), {}, ()))
    assert found.has("model.onnx")
    assert not found.has("tokenizer.json")
