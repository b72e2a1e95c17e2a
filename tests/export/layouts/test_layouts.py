"""Folders of each layout: what stands in them, that weights are links, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from isoformer.export.errors import ExportError
from isoformer.export.layouts import LAYOUTS, MARKER, Choice, convert
from isoformer.export.layouts.files import link
from isoformer.models.families import encoder
from isoformer.runtime import PackageError, Session
from isoformer.runtime.convert_command import package_for
from isoformer.runtime.onnx_file import external_files
from isoformer.runtime.package import MANIFEST, REQUIRED_OF_GRAPH, WEIGHTS, Package
from tests.conftest import export_small


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def embeddings(file: Path, options: onnxruntime.SessionOptions | None = None) -> np.ndarray:
    ids = np.array([[3, 5, 7, 11], [13, 17, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    session = onnxruntime.InferenceSession(file, options)
    wanted = {value.name for value in session.get_inputs()}
    found: Any = session.run(["sentence_embedding"], {k: v for k, v in inputs.items() if k in wanted})
    return found[0]


def test_triton_of_an_encoder(small_encoder: Package, tmp_path: Path) -> None:
    out = convert(small_encoder.path, tmp_path / "out", "triton")
    assert names(out) >= {MARKER, "small/config.pbtxt", "small/1/model.onnx", "small/tokenizer.json"}
    text = (out / "small/config.pbtxt").read_text()
    lines = text.splitlines()
    size = small_encoder.signature.outputs[0].axes[2]
    assert lines[:3] == ['name: "small"', 'backend: "onnxruntime"', "max_batch_size: 32"]
    assert 'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]' in lines
    assert f'output [ {{ name: "last_hidden_state" data_type: TYPE_FP32 dims: [ -1, {size} ] }} ]' in lines
    assert f'output [ {{ name: "sentence_embedding" data_type: TYPE_FP32 dims: [ {size} ] }} ]' in lines
    assert "dynamic_batching { max_queue_delay_microseconds: 500 }" in lines
    assert "instance_group [ { count: 1 kind: KIND_CPU } ]" in lines
    assert "optimization { graph { level: -1 } }" in lines
    session = Session.fastest(small_encoder)
    np.testing.assert_allclose(embeddings(out / "small/1/model.onnx"), reference(session), atol=1e-6)


def reference(session: Session) -> np.ndarray:
    ids = np.array([[3, 5, 7, 11], [13, 17, 0, 0]])
    return session.run({"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)})["sentence_embedding"]


def test_the_level_in_triton_gives_what_session_gives(small_encoder: Package, tmp_path: Path) -> None:
    out = convert(small_encoder.path, tmp_path / "out", "triton")
    basic = onnxruntime.SessionOptions()
    basic.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    found = embeddings(out / "small/1/model.onnx", basic)
    np.testing.assert_array_equal(found, reference(Session.fastest(small_encoder)))


def test_triton_on_a_gpu_computes_in_float32(small_encoder: Package, tmp_path: Path) -> None:
    text = (
        convert(small_encoder.path, tmp_path / "out", "triton", Choice(provider="cuda")) / "small/config.pbtxt"
    ).read_text()
    assert "KIND_GPU" in text
    assert 'key: "use_tf32" value: "0"' in text
    assert "level" not in text


def test_triton_runs_a_decoder_by_its_canonical_graph(small_decoder: Package, tmp_path: Path) -> None:
    out = convert(small_decoder.path, tmp_path / "out", "triton") / "small"
    assert (out / "1/model.onnx").samefile(small_decoder.model)
    assert (out / "1/model.onnx_data").samefile(small_decoder.path / "model.onnx_data")
    text = (out / "config.pbtxt").read_text()
    assert 'input [ { name: "past_key_values.1.value" data_type: TYPE_FP32 dims: [ 2, -1, 8 ] } ]' in text
    assert 'output [ { name: "present.0.key" data_type: TYPE_FP32 dims: [ 2, -1, 8 ] } ]' in text


def test_transformers_js(small_encoder: Package, small_decoder: Package, tmp_path: Path) -> None:
    out = convert(small_encoder.path, tmp_path / "encoder", "transformers.js")
    assert names(out) >= {"onnx/model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    np.testing.assert_allclose(embeddings(out / "onnx/model.onnx"), reference(Session(small_encoder)), atol=1e-6)
    out = convert(small_decoder.path, tmp_path / "decoder", "transformers.js")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": 1}}
    assert (out / "onnx/model.onnx_data").samefile(small_decoder.path / "model.onnx_data")


def with_files(package: Package, folder: Path, sign: Callable[[Path], None], texts: dict[str, str]) -> Path:
    """A copy of the package that has the files too, or others of their names."""
    copy = Path(shutil.copytree(package.path, folder))
    manifest = json.loads((copy / MANIFEST).read_text())
    for name, text in texts.items():
        (copy / name).write_text(text)
        manifest["files"][name] = ""
    (copy / MANIFEST).write_text(json.dumps(manifest))
    sign(copy)
    return copy


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_chat_template_comes_along(
    small_decoder: Package, tmp_path: Path, sign: Callable[[Path], None], layout: str
) -> None:
    template = "{% for message in messages %}<{{ message.content }}>{% endfor %}\n"
    settings = '{"eos_token": "<end>", "chat_template": "another"}'
    texts = {"chat_template.jinja": template, "tokenizer_config.json": settings}
    package = with_files(small_decoder, tmp_path / "package", sign, texts)
    out = convert(package, tmp_path / "out", layout)
    (file,) = out.rglob("chat_template.jinja")
    assert file.read_text() == template
    if layout == "transformers.js":  # which reads none but this
        config = json.loads((out / "tokenizer_config.json").read_text())
        assert config == {"eos_token": "<end>", "chat_template": template}
    assert (package / "tokenizer_config.json").read_text() == settings


def test_genai(small_decoder: Package, tmp_path: Path, files: tuple[int, int, list[Path]]) -> None:
    out = convert(small_decoder.path, tmp_path / "out", "genai")
    config = json.loads((out / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [files[1]]
    assert config["model"]["context_length"] == config["search"]["max_length"] == 70
    assert config["search"]["past_present_share_buffer"] is True
    decoder = config["model"]["decoder"]
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    assert [decoder[name] for name in sizes] == [8, 32, 4, 2, 2]
    assert (out / "model.onnx_data").samefile(small_decoder.path / "model.onnx_data")


def test_a_model_package_of_onnxruntime(small_encoder: Package, tmp_path: Path) -> None:
    out = convert(small_encoder.path, tmp_path / "out", "ort")
    manifest = json.loads((out / "manifest.json").read_text())
    (variants,) = (component["variants"] for component in manifest["components"].values())
    assert list(variants) == ["cpu"]
    info = variants["cpu"]["executor_info"]["ort"]
    file = out / variants["cpu"]["variant_directory"] / info["model_file"]
    np.testing.assert_allclose(embeddings(file), reference(Session.fastest(small_encoder)), atol=1e-6)


def test_a_model_package_of_a_decoder_takes_prompts_whole(small_decoder: Package, tmp_path: Path) -> None:
    out = convert(small_decoder.path, tmp_path / "out", "ort")
    (file,) = out.rglob("*.onnx")
    layers = [
        node for node in onnx.load(file, load_external_data=False).graph.node if node.op_type == "GroupQueryAttention"
    ]
    assert layers
    assert not any(any(node.input[11:]) for node in layers)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_in_a_folder_leads_out_of_it_and_weights_are_no_copies(
    small_decoder: Package, tmp_path: Path, layout: str
) -> None:
    out = convert(small_decoder.path, tmp_path / "out", layout)
    assert not any(file.is_symlink() for file in out.rglob("*"))
    graphs = list(out.rglob("*.onnx"))
    assert graphs
    for graph in graphs:
        for location in external_files(graph):
            assert "/" not in location
            assert (graph.parent / location).samefile(small_decoder.path / "model.onnx_data")


def test_another_file_system_gets_copies(
    small_decoder: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("isoformer.export.layouts.files.os.link", refuse)
    out = convert(small_decoder.path, tmp_path / "out", "genai")
    copy, source = out / "model.onnx_data", small_decoder.path / "model.onnx_data"
    assert not copy.samefile(source)
    assert copy.read_bytes() == source.read_bytes()


def test_a_link_never_writes_to_what_stands_at_its_place(tmp_path: Path) -> None:
    package, other, target = tmp_path / "package", tmp_path / "other", tmp_path / "target"
    package.write_text("the package's")
    other.write_text("another's")
    link(package, target)
    with pytest.raises(FileExistsError):
        link(other, target)
    assert package.read_text() == "the package's"


def test_two_graphs_of_one_name_in_triton_are_refused(
    small_encoder: Package, tmp_path: Path, sign: Callable[[Path], None]
) -> None:
    package = Path(shutil.copytree(small_encoder.path, tmp_path / "in" / "package"))
    manifest = json.loads((package / MANIFEST).read_text())
    records = {name: manifest.pop(name) for name in REQUIRED_OF_GRAPH} | {"variants": {}}
    manifest["graphs"] = {"a b": records, "A_b": records}
    for name in manifest["graphs"]:
        shutil.copyfile(package / "model.onnx", package / f"{name}.onnx")
        manifest["files"][f"{name}.onnx"] = ""
    (package / MANIFEST).write_text(json.dumps(manifest))
    sign(package)
    before = {file: file.read_bytes() for file in package.rglob("*") if file.is_file()}
    with pytest.raises(ExportError, match="graphs 'a b' and 'A_b', which Triton would both call small_a_b") as caught:
        convert(package, tmp_path / "out", "triton")
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in before} == before
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("layout", "choice", "complaint"),
    [
        ("onnx", Choice(), "'onnx' is not one of triton, transformers.js, genai, ort"),
        ("genai", Choice(), "genai takes decoders"),
        ("ort", Choice(provider="cuda"), "--provider cuda is for triton"),
        ("triton", Choice(provider="openvino"), "'openvino' is not one of cpu, cuda"),
        ("ort", Choice("int4"), "no int4 for cpu"),
        ("triton", Choice("int4"), "no int4 for cpu"),
        ("transformers.js", Choice("int4"), "no int4 for cpu"),
    ],
)
def test_what_is_refused(small_encoder: Package, tmp_path: Path, layout: str, choice: Choice, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint) as caught:
        convert(small_encoder.path, tmp_path / "out", layout, choice)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_a_configuration_is_not_for_transformers_js(embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no config.json"):
        convert(embedder, tmp_path / "out", "transformers.js")


def test_only_what_was_converted_is_replaced(small_encoder: Package, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(small_encoder.path, out, "ort")
    with pytest.raises(ExportError, match="--force replaces it"):
        convert(small_encoder.path, out, "triton")
    convert(small_encoder.path, out, "triton", Choice(force=True))
    assert not (out / "manifest.json").exists()
    (out / MARKER).unlink()
    with pytest.raises(ExportError, match="is not a converted package"):
        convert(small_encoder.path, out, "triton", Choice(force=True))


def test_a_place_within_the_package_is_refused(small_encoder: Package, tmp_path: Path) -> None:
    package = Path(shutil.copytree(small_encoder.path, tmp_path / "package"))
    with pytest.raises(ExportError, match="within one another"):
        convert(package, package / "out", "ort")


@pytest.mark.parametrize(
    "name", ["../../etc", 'x" } ]', "/outside", "..."]
)  # load refuses an empty one and one of two lines
def test_a_manifest_cannot_name_a_place_outside(
    small_encoder: Package, tmp_path: Path, sign: Callable[[Path], None], name: str
) -> None:
    package = Path(shutil.copytree(small_encoder.path, tmp_path / "in" / "package"))
    manifest = json.loads((package / MANIFEST).read_text()) | {"name": name}
    (package / MANIFEST).write_text(json.dumps(manifest))
    sign(package)
    out = convert(package, tmp_path / "out", "triton")
    (config,) = out.rglob("config.pbtxt")
    assert config.parent.parent == out
    assert config.read_text().splitlines()[0] == f'name: "{config.parent.name}"'
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]


def test_a_broken_configuration_is_one_line(
    small_encoder: Package, tmp_path: Path, sign: Callable[[Path], None]
) -> None:
    package = Path(shutil.copytree(small_encoder.path, tmp_path / "package"))
    (package / "config.json").write_text("[")
    sign(package)
    with pytest.raises(PackageError, match=r"config.json cannot be read as JSON"):
        convert(package, tmp_path / "out", "transformers.js")


def edited(package: Package, folder: Path, **entries: Any) -> Path:
    """A copy whose manifest says something else."""
    copy = Path(shutil.copytree(package.path, folder))
    manifest = json.loads((copy / MANIFEST).read_text()) | entries
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return copy


def test_a_precision_that_transformers_js_does_not_know_is_one_line(small_decoder: Package, tmp_path: Path) -> None:
    # One that the manifest may state, so that this does not rest on what its form refuses.
    package = edited(small_decoder, tmp_path / "package", precision="bfloat16", preferred="bfloat16")
    with pytest.raises(ExportError, match="no graph of precision 'bfloat16' that transformers") as caught:
        convert(package, tmp_path / "out", "transformers.js")
    assert "\n" not in str(caught.value)


def test_a_variant_under_another_name_is_not_taken_for_its_precision(small_decoder: Package, tmp_path: Path) -> None:
    variants = {"cpu-other": small_decoder.variants["cpu-float32"] | {"precision": "int8"}}
    package = edited(small_decoder, tmp_path / "package", variants=variants)
    with pytest.raises(ExportError, match="no graph of precision 'int8'"):
        convert(package, tmp_path / "out", "transformers.js", Choice("int8"))


@pytest.mark.parametrize("text", ["{", '{"model": {"type": "nonsense"}}', "[]"])
def test_a_broken_tokenizer_is_one_line(
    small_decoder: Package, tmp_path: Path, sign: Callable[[Path], None], text: str
) -> None:
    package = with_files(small_decoder, tmp_path / "package", sign, {"tokenizer.json": text, "config.json": "{}"})
    with pytest.raises(PackageError, match=r"tokenizer.json cannot be read") as caught:
        convert(package, tmp_path / "out", "genai")
    assert "\n" not in str(caught.value)


def unlist(package: Path, *unlisted: str) -> None:
    """The files stay, and the manifest does not know them."""
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name not in unlisted}
    (package / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_manifest_does_not_list_is_not_carried(small_decoder: Package, tmp_path: Path, layout: str) -> None:
    package = Path(shutil.copytree(small_decoder.path, tmp_path / "package"))
    for name in ("generation_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (package / name).write_text('{"eos_token_id": 3}')
    out = convert(package, tmp_path / "out", layout)
    there = {Path(name).name for name in names(out)}
    assert "tokenizer.json" in there
    assert there.isdisjoint({"generation_config.json", "special_tokens_map.json", "chat_template.jinja"})


@pytest.mark.parametrize(
    ("layout", "unlisted", "complaint"),
    [
        ("transformers.js", "config.json", "has no config.json"),
        ("transformers.js", "tokenizer.json", "has no tokenizer.json"),
        ("genai", "tokenizer.json", "does not say which token ends a text"),
        ("genai", "tokenizer_config.json", "does not say which token ends a text"),
    ],
)
def test_what_the_manifest_does_not_list_is_not_read(
    small_decoder: Package, tmp_path: Path, layout: str, unlisted: str, complaint: str
) -> None:
    package = Path(shutil.copytree(small_decoder.path, tmp_path / "package"))
    config = "config.json" if layout == "genai" else unlisted  # it too says which token ends a text
    unlist(package, unlisted, config)
    with pytest.raises(ExportError, match=complaint):
        convert(package, tmp_path / "out", layout)


def test_the_command(isoformer, small_encoder: Package, tmp_path: Path) -> None:
    done = isoformer("convert", small_encoder.path, tmp_path / "out", "--layout", "ort", "--precision", "fp32")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {tmp_path / 'out'}\n", "")
    again = isoformer("convert", small_encoder.path, tmp_path / "out", "--layout", "ort")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


def test_a_converted_package_is_still_verified(isoformer, small_encoder: Package, tmp_path: Path) -> None:
    convert(small_encoder.path, tmp_path / "out", "triton")
    weights = small_encoder.path / WEIGHTS
    assert weights.stat().st_nlink > 1
    done = isoformer("verify", small_encoder.path, "--runtime", "reference")
    assert done.returncode == 0, done.stderr
    assert " 0 failures" in done.stdout


def test_an_export_goes_through_a_package_that_does_not_stay(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "tiny"
    with package_for(out, "triton", force=False) as target:
        assert target.name == "tiny"
        export_small(
            encoder.Model(encoder.TINY), encoder.signature(encoder.TINY), target, task=encoder.task(encoder.TINY)
        )
    assert [file.name for file in out.parent.iterdir()] == ["tiny"]
    assert embeddings(out / "tiny/1/model.onnx").shape[0] == 2
