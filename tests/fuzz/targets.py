"""What is fuzzed: how an input is made from a seed, and what is done with it.

An input is a dict of file names and contents; a Path in place of a content is a symbolic link that leads there.
"""

import asyncio
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto
from rich.console import Console

from isoformer.models import checkpoints
from isoformer.models.checkpoints.ctranslate2 import ModelFile
from isoformer.models.checkpoints.gguf_file import GGUFFile
from isoformer.runtime import cli, decoding, load, tuning
from isoformer.runtime.batch.rows import Place, Source
from isoformer.runtime.cost import Cost
from isoformer.runtime.generation import Settings
from isoformer.runtime.package import MANIFEST, Package
from isoformer.runtime.serve.app import Server, make_app
from isoformer.runtime.serve.inference import LENGTH_HEADER
from isoformer.runtime.serve.limits import Limits
from isoformer.runtime.session import Session, open_fastest
from isoformer.runtime.tasks import embed, generate
from isoformer.runtime.tune import job
from isoformer.runtime.tuning import Choice, Record, Round, Shape
from isoformer.runtime.verify import read_grid
from tests.fuzz.guards import MEMORY
from tests.fuzz.mutate import any_bytes, any_json, hostile

Input = dict[str, bytes | Path]
FEW = Settings(max_tokens=2)


class Target:
    """make: an input of a generator. run: what is done with the folder that holds it.

    most_memory: bytes that this may take, None for what the process has.
    """

    most_memory: int | None = MEMORY

    def __init__(self, material: Path, folder: Path, decoy: Path) -> None:
        self.material, self.folder = material, folder
        self.words = ["../decoy/secret", str(decoy / "secret"), "/etc/hostname", "README.md", "variants/x/model.onnx"]
        self.prepare()

    def prepare(self) -> None:
        """Reads what inputs are made from."""

    def make(self, rng: random.Random) -> Input:
        raise NotImplementedError

    def run(self) -> None:
        raise NotImplementedError

    def put(self, found: Input) -> None:
        """Writes the input into the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write(self.folder, found)


def write(folder: Path, found: Input) -> None:
    for name, content in found.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink() or file.is_file():
            file.unlink()
        if isinstance(content, Path):
            if file.is_dir():
                shutil.rmtree(file)
            file.symlink_to(content)
        else:
            file.write_bytes(content)


class PackageTarget(Target):
    """A package in which the manifest, a file or a link is hostile, under true digests as somebody would write them."""

    kind = "embedder"
    most_memory = None  # a graph is run

    def prepare(self) -> None:
        self.good = self.material / self.kind
        self.manifest = json.loads((self.good / MANIFEST).read_text(encoding="utf-8"))
        self.changed: list[str] = []
        self.fresh()

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.good, self.folder, copy_function=os.link)

    def put(self, found: Input) -> None:
        if any(isinstance(content, Path) for content in found.values()) or set(found) - set(self.manifest["files"]):
            self.fresh()
            self.changed = ["fresh"]
        write(self.folder, found)
        if self.changed != ["fresh"]:
            self.changed = list(found)

    def restore(self) -> None:
        """The good package again."""
        if self.changed == ["fresh"]:
            self.fresh()
        for name in self.changed if self.changed != ["fresh"] else ():
            (self.folder / name).unlink()
            os.link(self.good / name, self.folder / name)
        self.changed = []

    def signed(self, found: Input) -> Input:
        """With a manifest that has the digests of what was changed."""
        import hashlib

        digests = {n: hashlib.sha256(c).hexdigest() for n, c in found.items() if isinstance(c, bytes)}
        manifest = self.manifest | {"files": self.manifest["files"] | digests}
        return found | {MANIFEST: json.dumps(manifest).encode()}

    def make(self, rng: random.Random) -> Input:
        files = sorted(self.manifest["files"])
        match rng.randrange(10):
            case 0:  # a link
                name = rng.choice([*files, MANIFEST, "test_data_set_0", "variants", "more", "variants/x"])
                to = [Path(word) for word in self.words] + [Path(f"../{self.kind}/{name}"), Path("/etc"), Path(name)]
                return {name: rng.choice(to)}
            case 1 | 2:
                name = rng.choice(files)
                return self.signed({name: any_bytes(rng, (self.good / name).read_bytes()[: 2**20])})
            case 3:
                name = rng.choice([n for n in files if n.endswith((".pb", ".npz", ".json"))])
                return self.signed({name: any_bytes(rng, (self.good / name).read_bytes())})
            case 4:
                return {MANIFEST: any_json(rng, self.manifest, self.words, ("files", "variants"))}
            case 5 | 6:
                return {MANIFEST: any_json(rng, self.manifest, self.words, ("signature",))}
            case _:
                keys = (
                    "task",
                    "golden",
                    "tolerances",
                    "versions",
                    "parity",
                    "variants",
                    "decoding",
                    "grid",
                    "operators",
                )
                return {MANIFEST: any_json(rng, self.manifest, self.words, keys)}

    def run(self) -> None:
        package = load(self.folder)
        show(package)
        for part in package.graphs.values():
            read_evidence(part)
        self.use(package)

    def use(self, package: Package) -> None:
        session = open_fastest(package, threads=1)
        embed.run(session, ["a fox"], truncate=True)  # pyright: ignore[reportArgumentType]


def show(package: Package) -> None:
    """As `isoformer inspect` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "out", Console(file=io.StringIO(), markup=False, emoji=False))
        json.dumps(cli._without_cases(package.manifest))
        cli._print_facts(cli._facts(package))
        for part in package.graphs.values():
            cli._print_graph(part)


def read_evidence(part: Package) -> None:
    """All that verification reads."""
    for _ in part.golden():
        pass
    for _ in read_grid(part):
        pass


class Generator(PackageTarget):
    kind = "generator"

    def use(self, package: Package) -> None:
        session = Session.fastest(package, threads=1)
        generate.run(session, ["a fox"], settings=FEW)
        if package.manifest.get("decoding"):
            for _ in decoding.verify(package, session, "ort"):
                break


class Graph(PackageTarget):
    """model.onnx, changed as a message and as bytes."""

    def prepare(self) -> None:
        super().prepare()
        self.model = onnx.load(self.good / "model.onnx", load_external_data=False)

    def make(self, rng: random.Random) -> Input:
        if rng.random() < 0.3:
            content = (self.good / "model.onnx").read_bytes()
            return self.signed({"model.onnx": any_bytes(rng, content, [word.encode() for word in self.words])})
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for _ in range(rng.choice((1, 1, 2, 5))):
            change_graph(rng, model, self.words)
        try:
            return self.signed({"model.onnx": model.SerializeToString()})
        except ValueError:  # beyond 2 GB
            return self.signed({"model.onnx": b""})

    def use(self, package: Package) -> None:
        embed.run(Session(package, threads=1), ["a fox"], truncate=True)


SIZES = (0, -1, 1, 2**31, 2**40, 2**62, -(2**63), 10**6)


def change_graph(rng: random.Random, model: onnx.ModelProto, words: list[str]) -> None:
    """One hostile edit: a lying shape, an absurd attribute, external data elsewhere, a graph in a graph, …"""
    graph = model.graph
    node = rng.choice(graph.node) if graph.node else graph.node.add()
    weights = rng.choice(graph.initializer) if graph.initializer else graph.initializer.add()
    match rng.randrange(12):
        case 0:
            weights.dims[:] = [rng.choice(SIZES)] * rng.choice((1, 2, 40))
        case 1:
            weights.data_type = rng.randrange(-1, 40)
        case 2:
            weights.data_location = TensorProto.EXTERNAL
            weights.ClearField("raw_data")
            wanted = {"location": rng.choice([*words, "*/_ORT_MEM_ADDR_/*", "README.md", "", "model.onnx"])}
            wanted |= {key: str(rng.choice(SIZES)) for key in ("offset", "length") if rng.random() < 0.7}
            for key, value in wanted.items():
                entry = weights.external_data.add()
                entry.key, entry.value = key, value
        case 3:
            node.op_type = rng.choice(
                ("Loop", "If", "Scan", "Add", "Reshape", "", "x" * 999, "MatMulNBits", "Attention")
            )
        case 4:
            node.domain = rng.choice(("com.microsoft", "", "x", "ai.onnx.ml"))
        case 5:
            attribute = rng.choice(node.attribute) if node.attribute and rng.random() < 0.7 else node.attribute.add()
            attribute.name = attribute.name or "axis"
            attribute.type = rng.choice(
                (AttributeProto.INT, AttributeProto.INTS, AttributeProto.GRAPH, AttributeProto.TENSOR)
            )
            attribute.i = rng.choice(SIZES)
            attribute.ints[:] = [rng.choice(SIZES)] * rng.choice((1, 3, 1000))
        case 6:
            inner = onnx.GraphProto()
            for _ in range(rng.choice((3, 40, 90))):
                outer = onnx.GraphProto()
                holder = outer.node.add()
                holder.op_type = "If"
                attribute = holder.attribute.add()
                attribute.name, attribute.type = "then_branch", AttributeProto.GRAPH
                attribute.g.CopyFrom(inner)
                inner = outer
            attribute = node.attribute.add()
            attribute.name, attribute.type = "then_branch", AttributeProto.GRAPH
            attribute.g.CopyFrom(inner)
        case 7:
            names = node.input if rng.random() < 0.5 else node.output
            if names:
                names[rng.randrange(len(names))] = rng.choice(
                    ("", "input_ids", node.output[0] if node.output else "x", "zz")
                )
        case 8:
            del graph.node[rng.randrange(len(graph.node)) : rng.randrange(len(graph.node)) + 1]
        case 9:
            for _ in range(rng.choice((1, 100, 3000))):
                graph.node.add().CopyFrom(node)
        case 10:
            model.opset_import[0].version = rng.choice((-1, 0, 1, 7, 99, 2**40))
        case _:
            value = rng.choice([*graph.input, *graph.output])
            for dimension in value.type.tensor_type.shape.dim:
                dimension.dim_value = rng.choice(SIZES)


class Archive(PackageTarget):
    """parity.npz: lying headers, sizes and shapes, and what unpacks to much more."""

    most_memory = MEMORY

    def prepare(self) -> None:
        super().prepare()
        self.members: dict[str, bytes] = {}
        with np.load(self.good / "parity.npz") as arrays:
            for name in arrays:
                np.save(content := io.BytesIO(), arrays[name])
                self.members[name] = content.getvalue()

    def make(self, rng: random.Random) -> Input:
        if rng.random() < 0.3:
            return self.signed({"parity.npz": any_bytes(rng, (self.good / "parity.npz").read_bytes())})
        names = list(self.members)
        wrong = {rng.choice(names): self._member(rng) for _ in range(rng.choice((1, 3)))}
        held = io.BytesIO()
        method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(held, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(f"{name}.npy", wrong.get(name, content), method if name in wrong else None)
            if rng.random() < 0.1:
                archive.writestr("../decoy/secret.npy", b"x")
        return self.signed({"parity.npz": held.getvalue()})

    def _member(self, rng: random.Random) -> bytes:
        shape = tuple(rng.choice((*SIZES, 3)) for _ in range(rng.choice((0, 1, 2, 3, 40))))
        descr = rng.choice(("<f4", "|O", "<i8", "<U99", "|V8", "<M8", "(2,3)<f4", "x" * 50, "<f2", "<c16"))
        said = (
            f"{{'descr': {descr!r}, 'fortran_order': {rng.choice(('True', 'False', '1', '[]'))}, 'shape': {shape}, }}"
        )
        said = rng.choice((said, said, said, "(" * 900, "{" + said, "__import__('os')", said * 2))
        header = said.encode() + b" " * rng.randrange(64) + b"\n"
        head = b"\x93NUMPY" + bytes((rng.choice((1, 2, 3, 9)), 0)) + len(header).to_bytes(2, "little") + header
        return head + rng.choice((b"", rng.randbytes(24), bytes(10**6), b"cos\nsystem\n(S'id'\ntR."))

    def run(self) -> None:
        for part in load(self.folder).graphs.values():
            read_evidence(part)


class Texts(PackageTarget):
    """tokenizer.json and its neighbours, chat templates among them, of a decoder."""

    kind = "generator"
    most_memory = MEMORY

    def make(self, rng: random.Random) -> Input:
        name = rng.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "j"))
        if name == "j":
            return self.signed({"tokenizer_config.json": json.dumps({"chat_template": self._template(rng)}).encode()})
        content = (self.good / name).read_bytes()
        if rng.random() < 0.2:
            return self.signed({name: any_bytes(rng, content)})
        return self.signed({name: any_json(rng, json.loads(content), [*self.words, "model", "vocab", "Sequence"])})

    def _template(self, rng: random.Random) -> str:
        parts = [
            "{{ messages[0]['content'] }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
            "{{ 'x' * 999999999999 }}",
            "{{ 9**9**9 }}",
            "{{ '%999999999d' % 1 }}",
            "{{ ''.__class__.__mro__ }}",
            "{{ messages.__class__.__init__.__globals__ }}",
            "{% include '/etc/hostname' %}",
            "{% import 'os' as os %}",
            "{{ lipsum(999999999) }}",
            "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            "{{ messages | tojson(indent=999999999) }}",
            "{{ '{:>999999999}'.format(1) }}",
            "{{ 'a' | center(999999999) }}",
            "{{ raise_exception('a\nb') }}",
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set x = 'ab' * 500000 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
            "{{ [1]|batch(999999999, 0)|list }}",
            "{{ messages[7]['x'] }}",
            "{{ strftime_now(1) }}",
            "{{ ",
            "{% if",
        ]
        return "".join(rng.choice(parts) for _ in range(rng.choice((1, 1, 2))))

    def use(self, package: Package) -> None:
        from isoformer.runtime.chat import Chat

        session = Session.fastest(package, threads=1)
        generate.run(session, ["a fox \u00e9"], settings=FEW)
        for _ in Chat(session, settings=FEW).say("hello"):
            pass

    def run(self) -> None:
        self.use(load(self.folder))


class Tuning(PackageTarget):
    """tuning.json, which is under no digest: shown, followed by a session with its threads, and repaired."""

    most_memory = MEMORY

    def prepare(self) -> None:
        super().prepare()
        shape, free = Shape(1, 7, 7), next(iter(load(self.good).variants))
        choices = {Choice(): 1.5, Choice(free, threads=1, spinning=False): 2.5}
        table = {shape: Choice(), Shape(5, 13, 29): Choice(free, threads=1)}
        record = Record([shape], [Round(0, 0, shape, choices)], {Choice("x"): "why"}, table, Cost(7.0, 0.5))
        tuning.write(load(self.folder), "cpu", "float32", record)
        self.record = json.loads((self.folder / tuning.FILE).read_text(encoding="utf-8"))

    def make(self, rng: random.Random) -> Input:
        if rng.random() < 0.05:
            return {tuning.FILE: rng.choice([*map(Path, self.words), Path(tuning.FILE)])}
        words = [*self.words, "canonical threads=2000", "1x16", "cpu-float32", "fusions=all", "0x0", "9x999999999"]
        if rng.random() < 0.3:
            return {tuning.FILE: any_json(rng, self.record, words)}
        keys = ("machines", *self.record["machines"], "records")
        whole = json.loads(json.dumps(self.record))
        records = whole["machines"][tuning.machine()]["records"]
        (name,) = records
        records[name] = json.loads("{}")
        text = json.dumps(whole).encode()
        place = text.rindex(b"{}")
        inner = any_json(rng, self.record["machines"][tuning.machine()]["records"][name], [*words, *keys])
        return {tuning.FILE: text[:place] + inner + text[place + 2 :]}

    def run(self) -> None:
        package = load(self.folder)
        try:
            show(package)
        finally:
            try:
                embed.run(Session.fastest(package), ["a fox", "a " * 9], truncate=True)
            finally:
                job.begin(job.Job(package, "cpu", "float32", (Shape(1, 7, 7),), 0.0))


def as_json(data: Any) -> bytes:
    """As JSON; what is nested too deeply for that is written by hand."""
    try:
        return json.dumps(data).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b'{"a":' * 2000 + b"1" + b"}" * 2000


class GGUF(Target):
    """A GGUF file, through the container and through the whole reader."""

    def prepare(self) -> None:
        self.good = (self.material / "llama.gguf").read_bytes()
        self.keys = [
            b"general.architecture",
            b"llama.block_count",
            b"llama.embedding_length",
            b"\x08\0\0\0",
            b"\x09\0\0\0",
        ]
        self.head = self.good.find(b"blk.0") + 4000

    def make(self, rng: random.Random) -> Input:
        if rng.random() < 0.7:  # what describes, not the weights
            head = any_bytes(rng, self.good[: self.head], self.keys)
            return {"x.gguf": head + self.good[self.head :]}
        return {"x.gguf": any_bytes(rng, self.good, self.keys)}

    def run(self) -> None:
        file = self.folder / "x.gguf"
        found = GGUFFile(file)
        for name in list(found.tensors)[:3]:
            found.read(name)
        read_checkpoint(file)


def read_checkpoint(path: Path) -> None:
    """As export does: the weights into a model."""
    checkpoints.read(path).model()


class CTranslate2(Target):
    """A model.bin with its neighbours."""

    def prepare(self) -> None:
        self.files = {file.name: file.read_bytes() for file in (self.material / "whisper").iterdir()}
        self.names = [b"decoder/activation", b"encoder/num_heads", b"WhisperSpec", b"\x06\0\0\0"]

    def make(self, rng: random.Random) -> Input:
        found: Input = dict(self.files)
        match rng.randrange(5):
            case 0:
                name = rng.choice(("tokenizer.json", "config.json"))
                found[name] = any_json(rng, json.loads(self.files[name]), self.words)
            case 1 | 2:
                content = self.files["model.bin"]
                place = max(0, content.find(rng.choice((b"encoder/", b"decoder/")), rng.randrange(len(content))))
                around = any_bytes(rng, content[place : place + 80], self.names)
                found["model.bin"] = content[:place] + around + content[place + 80 :]
            case _:
                found["model.bin"] = any_bytes(rng, self.files["model.bin"], self.names)
        return found

    def run(self) -> None:
        ModelFile(self.folder / "model.bin")
        read_checkpoint(self.folder)


class Safetensors(Target):
    """A checkpoint folder: config.json, the header of the weights, the tokenizer, shards and links."""

    def prepare(self) -> None:
        self.files = {file.name: file.read_bytes() for file in (self.material / "bert").iterdir() if file.is_file()}
        weights = self.files["model.safetensors"]
        self.length = int.from_bytes(weights[:8], "little")
        self.header = json.loads(weights[8 : 8 + self.length])

    def make(self, rng: random.Random) -> Input:
        found: Input = dict(self.files)
        weights = self.files["model.safetensors"]
        match rng.randrange(6):
            case 0 | 1:
                config = json.loads(self.files["config.json"])
                key = rng.choice(list(config))
                numbers = (10**12, -1, 0, "12", [3], 10**9, 1.5, None, {}, True)
                config[key] = rng.choice((*numbers, hostile(rng, self.words)))
                found["config.json"] = as_json(config)
            case 2:
                found["config.json"] = any_json(rng, json.loads(self.files["config.json"]), self.words)
            case 3:
                header = any_json(rng, self.header, [*self.words, "F32", "I64", "shape", "data_offsets"])
                length = len(header) if rng.random() < 0.8 else rng.choice((0, 2**31, 2**63, 2**64 - 1, 10**9))
                found["model.safetensors"] = length.to_bytes(8, "little") + header + weights[8 + self.length :]
            case 4:
                found["model.safetensors"] = any_bytes(rng, weights)
            case _:
                del found["model.safetensors"]
                names = rng.choice((*self.words, "a.safetensors", "model.safetensors", 7, None))
                found["model.safetensors.index.json"] = any_json(rng, {"weight_map": {"a": names}}, self.words)
                found["a.safetensors"] = weights
        return found

    def run(self) -> None:
        read_checkpoint(self.folder)


class Requests(Target):
    """Bodies for the server's routes, through the whole application: no answer may be a 500."""

    def prepare(self) -> None:
        limits = Limits(max_tokens=2, timeout=120)
        self.apps = {
            name: make_app(Server(Session.fastest(self.material / name, threads=1), "m", limits))
            for name in ("embedder", "generator")
        }
        ids = [[1, 2, 3]]
        tensors = [
            {"name": name, "datatype": "INT64", "shape": [1, 3], "data": ids}
            for name in ("input_ids", "attention_mask")
        ]
        self.infer = {"id": "1", "inputs": tensors, "outputs": [{"name": "sentence_embedding"}], "parameters": {}}
        messages = [{"role": "user", "content": "a fox"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
        self.chat = {
            "model": "m",
            "messages": messages,
            "max_tokens": 2,
            "temperature": 0,
            "stop": ["x"],
            "stream": False,
        }
        self.chat |= {"seed": 1, "top_p": 0.5, "stream_options": {"include_usage": True}, "n": 1}
        self.complete = {"model": "m", "prompt": "a fox", "max_tokens": 2, "stream": True}

    def make(self, rng: random.Random) -> Input:
        words = [*self.words, "shared_memory_region", "binary_data_size", "BYTES", "BOOL", "FP16", "-1"]
        match rng.randrange(4):
            case 0:
                return {"infer": any_json(rng, self.infer, words)}
            case 1:
                data = json.loads(json.dumps(self.infer))
                for tensor in data["inputs"]:
                    del tensor["data"]
                    tensor["parameters"] = {"binary_data_size": rng.choice((24, 24, 24, 0, 25, 2**40, -1))}
                head = any_json(rng, data, words) if rng.random() < 0.7 else json.dumps(data).encode()
                length = len(head) if rng.random() < 0.9 else rng.choice((0, 1, 10**13, -1))
                return {
                    "infer": head + rng.randbytes(rng.choice((48, 48, 0, 47, 1000))),
                    "length": str(length).encode(),
                }
            case 2:
                return {"chat": any_json(rng, self.chat, words)}
            case _:
                return {"complete": any_json(rng, self.complete, words)}

    def run(self) -> None:
        for name, app, path in (
            ("infer", "embedder", "/v2/models/m/infer"),
            ("chat", "generator", "/v1/chat/completions"),
            ("complete", "generator", "/v1/completions"),
        ):
            file = self.folder / name
            if file.exists():
                length = self.folder / "length"
                headers = [(LENGTH_HEADER.lower().encode(), length.read_bytes())] if length.exists() else []
                status, body = asyncio.run(post(self.apps[app], path, file.read_bytes(), headers))
                if status == 500 or b"internal error" in body:
                    raise RuntimeError(f"{path} answered {status}: {body[:300]!r}")


async def post(app: Any, path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes]:
    """Status and body of the application's answer, as a server would get it."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "query_string": b"",
    }
    scope |= {"raw_path": path.encode(), "root_path": "", "headers": list(headers), "client": None, "server": None}
    sent, status, found = False, 0, b""
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, found
        status = message.get("status", status)
        found += message.get("body", b"")

    await app(scope, receive, send)
    return status, found


class Rows(Target):
    """Rows of batch work: JSON lines, CSV, Parquet."""

    def prepare(self) -> None:
        self.files = {name: (self.material / name).read_bytes() for name in ("rows.jsonl", "rows.csv", "rows.parquet")}
        self.words_in_bytes = [
            b'"',
            b'""',
            b"\r\n",
            b"\n",
            b"\xff",
            b"\\ud800",
            b'{"text":',
            b"[" * 3000,
            b"text",
            b"\0",
        ]

    def make(self, rng: random.Random) -> Input:
        name = rng.choice(list(self.files))
        content = self.files[name]
        if name == "rows.parquet" and rng.random() < 0.5:  # the index at its end
            return {name: content[:-600] + any_bytes(rng, content[-600:])}
        return {name: any_bytes(rng, content, self.words_in_bytes)}

    def run(self) -> None:
        (file,) = self.folder.iterdir()
        source = Source(file, "text")
        for chunk in source.chunks(Place(0, 0), 7):
            for row in chunk.rows:
                if row.reason is None and not isinstance(row.text, str):
                    raise RuntimeError(f"row {row.number} is {row.text!r}")


TARGETS: dict[str, Callable[[Path, Path, Path], Target]] = {
    "package": PackageTarget,
    "decoder": Generator,
    "graph": Graph,
    "archive": Archive,
    "texts": Texts,
    "tuning": Tuning,
    "gguf": GGUF,
    "ctranslate2": CTranslate2,
    "safetensors": Safetensors,
    "requests": Requests,
    "rows": Rows,
}
