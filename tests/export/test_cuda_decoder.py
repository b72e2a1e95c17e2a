"""A decoder's float16 graph for CUDA: its cache is float16 too, and it is run here by the CPU provider."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from isoformer.export import ExportError, variants
from isoformer.models.families import decoder
from isoformer.runtime import PackageError, Session, decoding, load
from isoformer.runtime.binding import Decoder, DeviceMemory, SharedCache
from isoformer.runtime.package import MANIFEST, Package
from isoformer.runtime.verify import replay_golden
from tests.conftest import export_small, require_gpu
from tests.export.test_variants import CONFIG, PLAIN, model_of

NAME = "cuda-float16"


@pytest.fixture(scope="module", params=[CONFIG, pytest.param(PLAIN, marks=pytest.mark.slow)], ids=["rotary", "learned"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    path = tmp_path_factory.mktemp("cuda") / "tiny"
    model, signature, text = model_of(request.param), decoder.signature(request.param), variants.TEXT.read_text()[:900]
    return export_small(model, signature, path, text=text, providers=("cuda",))


@pytest.fixture(scope="module")
def on_cpu(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A copy whose float16 variant is the CPU provider's, so that it can be run here."""
    path = Path(shutil.copytree(package.path, tmp_path_factory.mktemp("cpu") / "tiny"))
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    manifest["variants"][NAME]["provider"] = "cpu"
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return load(path)


@pytest.mark.parametrize("variant", ["cpu-float32", NAME])
def test_each_variant_has_golden_vectors_whose_cache_is_of_its_dtype(on_cpu: Package, variant: str) -> None:
    session = Session(on_cpu, variant=variant)
    found = list(replay_golden(on_cpu, decoding.plainly(session), variant, variant, lambda *_: None))
    assert found
    assert [one.line() for one in found if not one.passed] == []
    caches = {a.dtype for _, inputs, _ in on_cpu.golden(variant) for n, a in inputs.items() if n.startswith("past_")}
    assert caches == {np.dtype("float16" if variant == NAME else "float32")}


def test_the_manifest_says_what_was_measured_where(package: Package) -> None:
    variant = package.variant(NAME)
    assert (variant["provider"], variant["measured_on"], variant["cache"]) == ("cuda", "cpu", "shared")
    assert variant["cache_dtype"] == "float16"
    assert variant["gate"]["limits"] == dataclasses.asdict(variants.GATES["float16"])
    assert variant["gate"]["torch_float16"]["ratio"] <= variants.GATES["float16"].perplexity
    for case in variant["decoding"].values():
        assert case["bound"] == 4 * case["torch_error"]
        assert 0 < case["error"] <= case["bound"]
    exact = max(case["error"] for case in package.variant("cpu-float32")["decoding"].values())
    assert max(case["error"] for case in variant["decoding"].values()) > 100 * exact
    assert package.fastest("cuda") is None
    assert package.fastest("cuda", "float16") == NAME


def test_steps_and_golden_vectors_pass_again(on_cpu: Package) -> None:
    session = Session(on_cpu, variant=NAME)
    caches = [spec for spec in session.signature.inputs if spec.name.startswith("past_key_values.")]
    assert {spec.dtype for spec in caches} == {"float16"}
    assert {spec.dtype for spec in on_cpu.signature.inputs} == {"int64", "float32"}
    steps = list(decoding.verify(on_cpu, session, NAME))
    vectors = list(replay_golden(on_cpu, decoding.plainly(session), NAME, NAME, lambda *_: None))
    assert len(steps) == len(decoding.CASES)
    assert vectors
    assert all(one.passed for one in (*steps, *vectors))


def test_scores_are_not_whole_on_a_gpu(on_cpu: Package) -> None:
    graph = ir.load(on_cpu.path / on_cpu.variant(NAME)["path"]).graph
    layers = [node for node in graph if node.op_type == "GroupQueryAttention"]
    assert len(layers) == CONFIG.num_layers
    assert not any(any(node.inputs[11:]) for node in layers)


def test_a_cache_in_the_memory_of_a_device_computes_the_same(on_cpu: Package) -> None:
    """Growth, rows that are taken, rows that change places and a second prompt, by the way that a GPU goes."""

    def logits(decoder: Decoder) -> np.ndarray:
        found = [decoder.start([[3, 1, 4], [3, 1, 5]])[0]]
        found.append(decoder.append([[9], [2]]))
        decoder.take([1, 0])
        found.append(decoder.append([[6], [5]]))
        decoder.take([1, 1, 0])
        found.append(decoder.append([[7], [8], [9]]))
        steps = [decoder.append([[token % 101]] * 3) for token in range(260)]  # over the first capacity
        found += [steps[-1], decoder.start([[2, 7, 1]])[0], decoder.start([[2, 7, 3, 5]])[0]]
        return np.concatenate(found)

    host = Decoder(Session(on_cpu, variant=NAME))
    device = Decoder(Session(on_cpu, variant=NAME))
    cache = device._cache
    assert isinstance(cache, SharedCache)
    cache._hold = lambda array: DeviceMemory(array, "cpu")
    np.testing.assert_array_equal(logits(host), logits(device))
    assert all(isinstance(held, DeviceMemory) for held in cache._held)


def test_what_is_written_to_a_device_keeps_its_address() -> None:
    memory = DeviceMemory(np.zeros((2, 3, 5, 7), np.float16), "cpu")
    address = memory.value.data_ptr()
    array = memory.read()
    array[1] = 2.5
    assert not memory.read().any()  # what was read is a copy
    memory.write(array)
    np.testing.assert_array_equal(memory.read(), array)
    assert memory.value.data_ptr() == address


def test_a_cache_of_another_dtype_than_the_graph_has_is_refused(on_cpu: Package) -> None:
    del on_cpu.variant(NAME)["cache_dtype"]
    try:
        with pytest.raises(PackageError, match=r"past_key_values\.0\.key float16 .* the manifest says"):
            Session(on_cpu, variant=NAME)
    finally:
        on_cpu.variant(NAME)["cache_dtype"] = "float16"


def test_heads_that_the_operator_does_not_take_are_refused_in_one_line(tmp_path: Path) -> None:
    config = dataclasses.replace(decoder.TINY, max_positions=400)
    with pytest.raises(ExportError, match="cuda writes in place has heads of a multiple of 8, not of 6") as caught:
        export_small(model_of(config), decoder.signature(config), tmp_path / "tiny", providers=("cuda",))
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"softcap": 20.0}, "there is no graph in float16 for cuda: "),
        ({"max_positions": 3}, "there is no graph in float16 for cuda: a model of so few positions"),
    ],
)
def test_what_has_no_cache_in_place_is_refused_in_one_line(tmp_path: Path, changes: dict, said: str) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ExportError, match=said) as caught:
        export_small(model_of(config), decoder.signature(config), tmp_path / "tiny", providers=("cuda",))
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_on_a_gpu_steps_and_golden_vectors_pass_by_the_same_bounds(package: Package) -> None:
    require_gpu()
    session = Session(package, "cuda", variant=NAME)
    steps = list(decoding.verify(package, session, NAME))
    vectors = list(replay_golden(package, decoding.plainly(session), NAME, NAME, lambda *_: None))
    assert all(one.passed for one in (*steps, *vectors)), [one.line() for one in (*steps, *vectors) if not one.passed]
