"""Edited graphs of decoders: the same logits as the package's, whatever the edge."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.layouts import Choice, convert, decoders, files, genai, transformers_js
from isoformer.runtime import PackageError
from isoformer.runtime.package import Package

Arrays = dict[str, np.ndarray]


def feeds(package: Package, batch: int, length: int, past: int, seed: int = 0) -> Arrays:
    """Tokens behind a random cache, no padding."""
    rng = np.random.default_rng(seed)
    found: Arrays = {
        "input_ids": rng.integers(0, 200, (batch, length)),
        "attention_mask": np.ones((batch, past + length), np.int64),
        "position_ids": np.broadcast_to(np.arange(past, past + length), (batch, length)).copy(),
    }
    for spec in package.signature.inputs:
        if spec.name.startswith("past_key_values."):
            _, heads, _, size = spec.axes
            found[spec.name] = rng.standard_normal((batch, int(heads), past, int(size)), np.float32)
    return found


def run(file: Path, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    values: Any = session.run(names, {k: v for k, v in inputs.items() if k in wanted})
    return dict(zip(names, values, strict=True))


def same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture(scope="module", params=[None, "cpu-float32"], ids=["canonical", "in place"])
def variant(request: pytest.FixtureRequest) -> str | None:
    return request.param


def placed(package: Package, variant: str | None, folder: Path) -> Path:
    """The package's graph, for prompts that come whole, beside the weights that it names."""
    edit = None if variant is None else lambda model: decoders.whole_prompts(model.graph)
    files.place(package, decoders.path_of(package, variant), folder / "model.onnx", edit)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def original(small_decoder: Package, variant: str | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return placed(small_decoder, variant, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def kept(small_decoder: Package, variant: str | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph as transformers.js feeds it."""
    target = tmp_path_factory.mktemp("kept") / "model.onnx"
    shared = decoders.is_shared(small_decoder, variant)
    files.place(
        small_decoder,
        decoders.path_of(small_decoder, variant),
        target,
        lambda model: transformers_js.kept_logits(model, shared=shared),
    )
    return target


@pytest.mark.parametrize(("number", "places"), [(0, [0, 1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4]), (99, [0, 1, 2, 3, 4])])
def test_transformers_js_keeps_the_last_logits(
    small_decoder: Package, original: Path, kept: Path, number: int, places: list[int]
) -> None:
    inputs = feeds(small_decoder, 3, 5, 0)
    expected = run(original, inputs | {"logits_positions": np.array([places] * 3)})
    found = run(kept, inputs | {"num_logits_to_keep": np.array(number)})
    assert expected["present.1.key"].shape[2] == 5
    same(found, expected)


def test_transformers_js_goes_on_behind_a_cache(small_decoder: Package, original: Path, kept: Path) -> None:
    inputs = feeds(small_decoder, 3, 1, 7)
    expected = run(original, inputs | {"logits_positions": np.zeros((3, 1), np.int64)})
    found = run(kept, inputs | {"num_logits_to_keep": np.array(1)})
    assert found["present.0.value"].shape[2] == 8
    same(found, expected)


def test_a_cache_written_in_place_refuses_padding_on_the_left(
    small_decoder: Package, original: Path, kept: Path, variant: str | None
) -> None:
    inputs = feeds(small_decoder, 2, 5, 0) | {"num_logits_to_keep": np.array(1)}
    inputs["attention_mask"][1, :2] = 0
    if variant is None:  # whose mask says which keys take part
        expected = run(original, inputs | {"logits_positions": np.full((2, 1), 4)})
        same(run(kept, inputs), expected)
    else:
        with pytest.raises(Exception, match="Out of range value in index tensor"):
            run(kept, inputs)


def test_genai_takes_the_last_token_before_padding_on_the_right(small_decoder: Package, tmp_path: Path) -> None:
    convert(small_decoder.path, tmp_path / "out", "genai")
    source = placed(small_decoder, "cpu-float32", tmp_path / "original")
    inputs = feeds(small_decoder, 3, 5, 0)
    inputs["attention_mask"][1, 2:] = 0
    inputs["attention_mask"][2, 4:] = 0
    expected = run(source, inputs | {"logits_positions": np.array([[4], [1], [3]])})
    found = run(tmp_path / "out/model.onnx", inputs)
    assert found["logits"].shape[:2] == (3, 1)
    same(found, expected)
    later = feeds(small_decoder, 3, 1, 7)
    expected = run(source, later | {"logits_positions": np.zeros((3, 1), np.int64)})
    same(run(tmp_path / "out/model.onnx", later), expected)


@pytest.mark.parametrize(
    "edit", [partial(genai.last_logits, padded_right=True), partial(transformers_js.kept_logits, shared=True)]
)
def test_other_programs_get_attention_that_is_for_whole_prompts(
    small_decoder: Package, tmp_path: Path, edit: Callable[[ir.Model], None]
) -> None:
    def sinks(file: Path) -> list[bool]:
        graph = onnx.load(file, load_external_data=False).graph
        kept = {tensor.name for tensor in graph.initializer}
        layers = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        assert all(name in kept for node in layers for name in node.input[11:] if name)
        assert kept <= {name for node in graph.node for name in node.input}
        return [any(node.input[11:]) for node in layers]

    source = decoders.path_of(small_decoder, "cpu-float32")
    before = sinks(small_decoder.path / source)
    files.place(small_decoder, source, tmp_path / "model.onnx", edit)
    assert any(before)
    assert sinks(tmp_path / "model.onnx") == [False] * len(before)


def test_genai_without_a_cache_in_place_takes_the_last_column(small_decoder: Package, tmp_path: Path) -> None:
    edited = tmp_path / "model.onnx"
    files.place(small_decoder, "model.onnx", edited, lambda model: genai.last_logits(model, padded_right=False))
    inputs = feeds(small_decoder, 2, 5, 3)
    inputs["attention_mask"][1, :2] = 0
    expected = run(small_decoder.model, inputs | {"logits_positions": np.full((2, 1), 4)})
    same(run(edited, inputs), expected)


def test_precision_is_the_package_s_own_or_refused(small_decoder: Package, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no int8 for cpu"):
        convert(small_decoder.path, tmp_path / "out", "genai", Choice("int8"))
    assert list(tmp_path.iterdir()) == []
