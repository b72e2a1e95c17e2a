"""Decoders in place, in 8 and in 4 bits: what is measured before a variant is kept, and what a package does with it."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from isoformer.export import ExportError, quantize, shared_cache, variants
from isoformer.export.graph import to_onnx
from isoformer.export.smooth import smooth
from isoformer.models.families import decoder, encoder
from isoformer.runtime import PackageError, Session, binding, decoding, load
from isoformer.runtime.binding import Decoder, SharedCache
from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.package import MANIFEST, sha256
from isoformer.runtime.providers import open_session
from isoformer.runtime.verify import verify
from tests.conftest import export_small

CONFIG = dataclasses.replace(
    decoder.TINY, hidden_size=64, head_dim=16, intermediate_size=96, max_positions=400, qk_norm=True
)
PLAIN = dataclasses.replace(CONFIG, qk_norm=False, gated=False, norm_kind="layer", position_kind="learned")


def model_of(config: decoder.Config) -> decoder.Model:
    torch.manual_seed(5)
    model = decoder.Model(config).eval()
    with torch.no_grad():
        model.tokens.weight.mul_(0.2)  # the head's too: else every logit is far from every other
    return model


@pytest.fixture(scope="module", params=["int8", "int4"])
def package(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("variants") / request.param
    return export_small(model_of(CONFIG), decoder.signature(CONFIG), path, precision=request.param).path


# ----------------------------------------------------------------------------------------------- the package


def test_a_package_says_what_its_variants_are_and_how_they_were_measured(package):
    loaded = load(package)
    precision = package.name
    assert loaded.manifest["precision"] == "float32"
    assert loaded.manifest["preferred"] == precision
    assert set(loaded.variants) == {"cpu-float32", f"cpu-{precision}"}
    low = loaded.variant(f"cpu-{precision}")
    assert low["operators"]["com.microsoft::GroupQueryAttention"] == CONFIG.num_layers
    assert low["gate"]["limits"] == dataclasses.asdict(variants.GATES[precision])
    assert low["gate"]["ratio"] <= variants.GATES[precision].perplexity
    for variant in loaded.variants.values():
        assert len(variant["decoding"]) == len(decoding.CASES)
        assert all(0 < case["error"] <= case["bound"] for case in variant["decoding"].values())
    exact = max(case["error"] for case in loaded.variant("cpu-float32")["decoding"].values())
    rough = max(case["error"] for case in low["decoding"].values())
    assert rough > 100 * exact  # it really computes in fewer bits
    assert f"cpu-{precision}" in (package / "README.md").read_text()


def test_float32_stands_on_the_disk_once(package):
    weights = (package / "model.onnx_data").stat().st_size
    assert (package / "model.onnx").stat().st_size < weights / 2
    assert (package / "variants/cpu-float32/model.onnx").stat().st_size < weights / 2


def test_weights_in_few_bits_stand_beside_their_graph(package):
    """Where ONNX Runtime maps them; they are held to their digest, and a residual and its norm are one operator."""
    name = load(package).fastest("cpu")
    file = f"variants/{name}/model.onnx_data"
    assert file in load(package).manifest["files"]
    tables = CONFIG.vocab_size * CONFIG.hidden_size
    assert (package / file).stat().st_size > tables
    assert load(package).variant(str(name))["operators"]["com.microsoft::SkipSimplifiedLayerNormalization"] == 3


def test_the_fastest_is_what_the_package_was_exported_for(package):
    loaded = load(package)
    assert loaded.fastest("cpu") == f"cpu-{package.name}"
    assert loaded.fastest("cpu", "float32") == "cpu-float32"
    assert loaded.fastest("cuda") is None
    with pytest.raises(PackageError, match=r"has no float16 for cpu, but float32, int\d; export it again"):
        loaded.fastest("cpu", "float16")
    assert Session.fastest(package).variant == f"cpu-{package.name}"
    assert Session.fastest(package, precision="float32").variant == "cpu-float32"
    with pytest.raises(InputError, match="cpu-float32 is for cpu, not for cuda"):
        Session(loaded, "cuda", variant="cpu-float32")
    with pytest.raises(PackageError, match="has no variant cpu-int2; it has cpu-float32, cpu-int"):
        Session(loaded, variant="cpu-int2")


def test_every_graph_passes_its_steps_again(package):
    loaded = load(package)
    for name in (None, *loaded.variants):
        found = list(decoding.verify(loaded, Session(loaded, variant=name), str(name)))
        assert len(found) == len(decoding.CASES)
        assert all(comparison.passed for comparison in found)


def test_a_package_older_than_a_case_is_not_held_to_it_but_to_all_others(package, tmp_path):
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    with np.load(copy / decoding.FILE) as arrays:
        kept = dict(arrays)
    for case in (*decoding.SINCE, decoding.CASES[0]):
        del kept[case.name]
        np.savez(copy / decoding.FILE, **kept)
        manifest = json.loads((copy / MANIFEST).read_text())
        del manifest["variants"]["cpu-float32"]["decoding"][case.name]
        manifest["files"][decoding.FILE] = sha256(copy / decoding.FILE)
        (copy / MANIFEST).write_text(json.dumps(manifest))
        found = decoding.verify(load(copy), Session(load(copy), variant="cpu-float32"), "old")
        if case in decoding.SINCE:
            assert len(list(found)) == len(decoding.CASES) - 1
        else:
            with pytest.raises(PackageError, match="has no bound of the decoding"):
                list(found)


def test_a_variant_whose_weights_moved_is_found_out(package, tmp_path):
    """A thousandth of one layer's scales, under a manifest with the right digests."""
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    name = load(copy).fastest("cpu")
    file = copy / f"variants/{name}/model.onnx"
    graph = ir.load(file)
    scale = next(v for n, v in graph.graph.initializers.items() if n == "product.1.scale")
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(3.0), name=scale.name)
    ir.save(graph, file)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][f"variants/{name}/model.onnx"] = sha256(file)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    found = list(decoding.verify(load(copy), Session(load(copy), variant=name), "moved"))
    assert not all(comparison.passed for comparison in found)


@pytest.mark.parametrize("broken", ["path", "decoding"])
def test_a_manifest_whose_variants_cannot_be_read_is_refused(package, tmp_path, broken):
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["variants"]["cpu-float32"][broken] = "../elsewhere"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="cannot be read"):
        load(copy)


def test_a_session_in_place_is_for_the_decoder(package):
    session = Session(package, variant="cpu-float32")
    with pytest.raises(InputError, match="cpu-float32 writes its cache in place"):
        session.run({})


# ----------------------------------------------------------------------------------------------- the cache


def test_the_cache_stays_where_it_is_until_it_is_outgrown(package):
    held = Decoder(Session(package, variant="cpu-float32"))
    assert isinstance(held._cache, SharedCache)
    held.start([[1, 2, 3]])
    places = [memory.value.data_ptr() for memory in held._cache._held]
    for token in range(4, 250):
        held.append([[token % 101]])
    assert [memory.value.data_ptr() for memory in held._cache._held] == places
    before = held.append([[7]])
    while held.length < 300:
        before = held.append([[7]])
    assert held._cache._held[0].read().shape[2] == CONFIG.max_positions  # doubled, and no more than the model holds
    plain = Decoder(Session(package))
    plain.start(held.tokens)
    again, _ = plain.start([[*held.tokens[0][:-1], 7]])
    np.testing.assert_allclose(before, again, atol=1e-4)


@pytest.mark.parametrize("kind", ["cpu-float32", None])
def test_scores_are_those_of_every_sequence_alone(package, kind):
    decoder_ = Decoder(Session(package, variant=kind))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 101, n).tolist() for n in (9, 1, 30)]
    together = decoder_.score(rows)
    for row, logits in zip(rows, together, strict=True):
        assert logits.shape == (len(row), 101)
        np.testing.assert_allclose(logits, decoder_.score([row])[0], atol=1e-5)
    np.testing.assert_allclose(decoder_.start([rows[2]])[0][0], together[2][-1], atol=1e-5)


def test_layers_without_a_window_have_their_scores_whole(package):
    """A sink of -infinity, and the scale in the weights; the canonical graph's file is still where they stand."""
    windows = decoder.signature(CONFIG).windows
    assert set(windows) == {None, 9}
    for name, entry in load(package).variants.items():
        graph = ir.load(package / entry["path"]).graph
        layers = [node for node in graph if node.op_type == "GroupQueryAttention"]
        for node, window in zip(layers, windows, strict=True):
            assert node.attributes["scale"].as_float() == 1
            sinks = node.inputs[11] if len(node.inputs) > 11 else None
            assert (sinks is None) == (window is not None), name
            if sinks is not None:
                assert sinks.const_value is not None
                assert sinks.const_value.numpy().tolist() == [-np.inf] * CONFIG.num_heads


def recorded(monkeypatch, runs):
    """Adds the new tokens of each row to `runs`, for each run."""
    real = SharedCache.inputs

    def inputs(self, held, new):
        runs.append([len(row) for row in new])
        return real(self, held, new)

    monkeypatch.setattr(SharedCache, "inputs", inputs)


@pytest.mark.parametrize("kind", ["cpu-float32", "lower"])
def test_a_long_prompt_in_pieces_is_the_prompt(package, monkeypatch, kind):
    """Of rows of different lengths, alone, in a batch, behind others and at every place; pieces are about as long."""
    session = Session(package, variant=load(package).fastest("cpu") if kind == "lower" else kind)
    off = max(case["bound"] for case in load(package).variant(str(session.variant))["decoding"].values())
    rng = np.random.default_rng(11)
    rows = [rng.integers(0, 101, n).tolist() for n in (53, 7, 1, 36)]
    exact = Decoder(session)
    full = [exact.score([row])[0] for row in rows]
    monkeypatch.setattr(binding, "PIECE", 17)
    runs = []
    recorded(monkeypatch, runs)

    held = Decoder(session)
    np.testing.assert_allclose(held.start([rows[0]])[0][0], full[0][-1], atol=off)
    assert runs == [[13], [13], [13], [14]]
    assert held.tokens == [rows[0]]
    logits = held.append([rows[3]])[0]
    assert runs[4:] == [[12], [12], [12]]
    np.testing.assert_allclose(logits, exact.score([rows[0] + rows[3]])[0][-1], atol=off)

    runs.clear()
    for row, found in zip(full, held.start(rows)[0], strict=True):
        np.testing.assert_allclose(found, row[-1], atol=off)
    assert runs == [[13], [13], [13], [14], [7], [1], [12], [12], [12]]
    tokens = [[5], [7], [11], [13]]
    for row, token, found in zip(rows, tokens, held.append(tokens), strict=True):
        np.testing.assert_allclose(found, exact.score([row + token])[0][-1], atol=off)
    for row, found in zip(full, held.score(rows), strict=True):
        np.testing.assert_allclose(found, row, atol=off)


@pytest.mark.parametrize(
    ("scores", "rows", "runs"),
    [
        (256 * 2 * 30, [30, 9], [[30, 9]]),
        (256 * 2 * 30 - 1, [30, 9], [[30], [9]]),
        (256 * 21, [41], [[20], [21]]),
        (1, [41], [[8], [8], [8], [8], [9]]),
        (1, [1, 1], [[1, 1]]),
    ],
)
def test_all_scores_of_a_run_have_a_limit(package, monkeypatch, scores, rows, runs):
    held, found = Decoder(Session(package, variant="cpu-float32")), []
    full = [held.score([[7] * n])[0][-1] for n in rows]
    for name, value in {"SCORES": scores, "LEAST": 9, "PIECE": 40}.items():
        monkeypatch.setattr(binding, name, value)
    recorded(monkeypatch, found)
    held.forget()
    logits, _ = held.start([[7] * n for n in rows])
    assert found == runs
    np.testing.assert_allclose(logits, full, atol=1e-4)


def test_pieces_go_on_to_the_last_position(package):
    held, plain = Decoder(Session(package, variant="cpu-float32")), Decoder(Session(package))
    tokens = np.random.default_rng(5).integers(0, 101, CONFIG.max_positions - 1).tolist()
    np.testing.assert_allclose(held.start([tokens])[0], plain.start([tokens])[0], atol=1e-4)
    np.testing.assert_allclose(held.append([[4]]), plain.append([[4]]), atol=1e-4)
    assert {array.shape[2] for array in held.held().values()} == {held.length} == {CONFIG.max_positions}


def test_a_prompt_that_fails_halfway_leaves_what_was_there(package, monkeypatch):
    held = Decoder(Session(package, variant="cpu-float32"))
    held.start([[1, 2, 3]])
    before = held.append([[4]])
    monkeypatch.setattr(binding, "PIECE", 5)
    real, runs = held._computed, []

    def failing(*arguments):
        runs.append(arguments)
        if len(runs) == 2:
            raise IsoformerError("no memory")
        return real(*arguments)

    monkeypatch.setattr(held, "_computed", failing)
    with pytest.raises(IsoformerError, match="no memory"):
        held.append([[9] * 12])
    assert held.tokens == [[1, 2, 3, 4]]
    held.tokens = [[1, 2, 3]]
    np.testing.assert_array_equal(held.append([[4]]), before)


# ----------------------------------------------------------------------------------------------- the gate


def test_what_misses_its_gate_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(variants.GATES, "int8", variants.Gate(0.5, 0.85))
    with pytest.raises(ExportError, match=r"quality gate is missed: perplexity .* \(at most 0.5\)"):
        export_small(model_of(CONFIG), decoder.signature(CONFIG), tmp_path / "low", precision="int8")
    assert not list(tmp_path.iterdir())


def test_a_cache_in_place_that_computes_something_else_is_an_error_and_no_remark(tmp_path, monkeypatch):
    real = shared_cache.apply
    monkeypatch.setattr(shared_cache, "apply", lambda graph, _, *rest, **named: real(graph, (3, 3), *rest, **named))
    with pytest.raises(ExportError, match="the variant does not compute the same: cpu-float32"):
        export_small(model_of(CONFIG), decoder.signature(CONFIG), tmp_path / "wrong")
    assert not list(tmp_path.iterdir())


def test_a_cache_in_place_that_the_operator_does_not_take_is_a_remark(tmp_path):
    made = export_small(model_of(decoder.TINY), decoder.signature(decoder.TINY), tmp_path / "heads_of_6")
    assert made.variants == {}
    assert made.fastest("cpu") is None
    assert "head_size must be a multiple of 8" in made.manifest["notes"][0]


def test_8_bits_behind_a_cache_that_grows_have_tolerances_of_their_own(tmp_path):
    made = export_small(
        model_of(decoder.TINY), decoder.signature(decoder.TINY), tmp_path / "heads_of_6", precision="int8"
    )
    entry = made.variant("cpu-int8")
    assert entry["cache"] == "plain"
    assert "reproducible" not in entry
    report = verify(made, Session.fastest(made).run, "low", seed=3, variant="cpu-int8")
    assert report.passed
    assert report.worst() > 0.2


def test_the_gate_reads_the_text_that_is_given(tmp_path):
    with pytest.raises(ExportError, match="the text of the quality gate has 3 tokens; it needs more than 400"):
        export_small(model_of(CONFIG), decoder.signature(CONFIG), tmp_path / "low", precision="int8", text="abc")


def test_perplexity_and_agreement_by_hand():
    class Fixed:
        def __init__(self, logits):
            self.logits = np.array(logits, np.float32)

        def score(self, _rows):
            return [self.logits]

    exact = Fixed([[0.0, np.log(3.0)], [0.0, 0.0], [0, 0]])
    low = Fixed([[np.log(3.0), 0.0], [0.0, 0.0], [0, 0]])
    found = variants.gate(exact, low, [[0, 1, 0]], variants.Gate(9.0, 0.0))  # pyright: ignore
    assert found["perplexity_float32"] == pytest.approx((0.75 * 0.5) ** -0.5)
    assert found["perplexity"] == pytest.approx((0.25 * 0.5) ** -0.5)
    assert found["agreement"] == 0.5
    assert found["tokens"] == 2


def test_surprises_beyond_float64_are_compared_and_missed():
    """e^800 is infinite; what is worse than it by a factor is so all the same."""
    score = variants.Score()
    score.sums, score.same, score.count = np.array([800.0, 801.0]), 1, 1
    with pytest.raises(ExportError, match=r"perplexity inf is 2\.718 times float32's inf"):
        score.checked(variants.Gate(1.12, 0.85))
    score.sums = np.array([3.0, np.nan])
    with pytest.raises(ExportError, match="perplexity nan"):
        score.checked(variants.Gate(1.12, 0.85))


def test_precisions_that_an_encoder_has_not(tmp_path):
    model = encoder.Model(encoder.TINY)
    with pytest.raises(ExportError, match="precision int4 is for decoders alone; this model has float32 and int8"):
        export_small(model, encoder.signature(encoder.TINY), tmp_path / "encoder", precision="int4")
    with pytest.raises(ExportError, match="precision 'int3' is not one of float32, int8, int4"):
        export_small(model, encoder.signature(encoder.TINY), tmp_path / "encoder", precision="int3")


# ----------------------------------------------------------------------------------------------- the graphs


def graph_of(config: decoder.Config) -> ir.Model:
    return to_onnx(model_of(config), decoder.signature(config), 23)


def kinds(graph: ir.Model) -> Counter:
    return Counter(node.op_type for node in graph.graph)


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["llama", "gpt2"])
def test_every_product_is_in_8_bits_and_tied_embeddings_once(config):
    graph = graph_of(config)
    before = kinds(graph)["MatMul"]
    assert quantize.int8(graph) == before
    assert kinds(graph)["MatMul"] == 0
    assert kinds(graph)["MatMulIntegerToFloat"] == before
    tables = [v for v in graph.graph.initializers.values() if v.shape == (config.vocab_size, config.hidden_size)]
    assert [table.dtype for table in tables] == [ir.DataType.INT8]
    onnx.checker.check_model(ir.to_proto(graph), full_check=False)


def test_8_bits_are_a_scale_a_column_and_a_scale_a_row(tmp_path):
    """y = p · (round(127 x / p) / 127 @ W8) · scale, also of a row of zeros."""
    x = np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32)
    x[0, 1] = 0
    x[1, 2] *= 1000
    w = np.random.default_rng(1).standard_normal((32, 40)).astype(np.float32)
    peak = np.abs(x).max(-1, keepdims=True).clip(1e-30)
    scale = np.abs(w).max(0) / 127
    want = peak * (np.rint(127 * x / peak) / 127) @ (np.rint(w / scale) * scale)
    found = run_product(w, quantize.int8, x, tmp_path)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert (found[0, 1] == 0).all()


@pytest.mark.parametrize("way", [quantize.int8, quantize.int4], ids=["int8", "int4"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_row_does_not_depend_on_the_others(way, norm, tmp_path):
    """Not in one bit, though they be a thousand times larger."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 64)).astype(np.float32), rng.standard_normal((64, 40)).astype(np.float32)
    other = x.copy()
    other[0, :2] *= 1000
    other[1] += 7
    one, two = (run_product(w, way, values, tmp_path, norm=norm) for values in (x, other))
    assert (one[0, 2] == two[0, 2]).all()
    assert (one[1] != two[1]).any()


def test_4_bits_of_4_bits_are_what_they_were(tmp_path):
    """Q4_1 and Q4_0 come out as they went in: only the activations are rounded."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 16, (64, 40))
    numbers[0:2], numbers[32:34] = [[0], [15]], [[15], [0]]  # the ends of the range are taken, as those formats do
    step = rng.uniform(0.01, 0.1, (2, 1, 40)).repeat(32, 1).reshape(64, 40)
    low = rng.uniform(-1, 1, (2, 1, 40)).repeat(32, 1).reshape(64, 40)
    w = (numbers * step + low).astype(np.float32)
    packed, scale, offset = quantize.pack(w)
    nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(40, 2, 32)
    again = (nibbles - 8.0) * scale[..., None] + offset.T[..., None]
    np.testing.assert_allclose(again.reshape(40, 64).T, w, atol=1e-6)
    x = rng.standard_normal((1, 5, 64)).astype(np.float32)
    np.testing.assert_allclose(run_product(w, quantize.int4, x, tmp_path), x @ w, atol=0.05)


def test_columns_that_are_no_whole_blocks_are_in_8_bits(tmp_path):
    w = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((1, 3, 40)).astype(np.float32)
    graph = product(w)
    assert quantize.int4(graph) == 1
    assert kinds(graph)["MatMulNBits"] == 0
    np.testing.assert_allclose(run_product(w, quantize.int4, x, tmp_path), x @ w, atol=0.2)


def test_a_table_that_is_multiplied_as_it_stands_is_looked_up_in_float32():
    w = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    graph = product(w)
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["ids"]))
    found = ir.node("Gather", [graph.graph.initializers["w"], ids], attributes={"axis": 0})
    found.outputs[0].name = "found"
    graph.graph.append(found)
    graph.graph.inputs.append(ids)
    graph.graph.outputs.append(found.outputs[0])
    assert quantize.int8(graph) == 1
    (gather,) = (node for node in graph.graph if node.op_type == "Gather")
    assert gather.inputs[0] is graph.graph.initializers["w"]


def product(w: np.ndarray, *, norm: bool = False) -> ir.Model:
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    edge = (onnx.TensorProto.FLOAT, ["batch", "length"])
    normed = [helper.make_node("LayerNormalization", ["x", "ones"], ["normed"])] if norm else []
    graph = helper.make_graph(
        [*normed, helper.make_node("MatMul", ["normed" if norm else "x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", edge[0], [*edge[1], w.shape[0]])],
        [helper.make_tensor_value_info("y", edge[0], [*edge[1], w.shape[1]])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.ones(len(w), np.float32), "ones")],
        value_info=[helper.make_tensor_value_info("normed", edge[0], [*edge[1], w.shape[0]])] if norm else [],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


def run_product(w: np.ndarray, way, x: np.ndarray, path: Path, *, norm: bool = False) -> np.ndarray:
    graph = product(w, norm=norm)
    assert way(graph) == 1
    ir.save(graph, path / "model.onnx")
    found = open_session(str(path / "model.onnx")).run(None, {"x": x})[0]
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["llama", "gpt2"])
def test_smoothing_changes_the_weights_and_not_what_they_compute(config):
    model, signature = model_of(config).double(), decoder.signature(config)
    tokens = torch.arange(40)[None] % 101

    def run():
        past = {
            spec.name: torch.zeros(1, int(spec.axes[1]), 0, int(spec.axes[3]), dtype=torch.float64)
            for spec in signature.inputs[4:]
        }
        places = torch.arange(40)[None]
        return model(tokens, torch.ones(1, 40, dtype=torch.int64), places, places, **past)["logits"]

    with torch.no_grad():
        model.blocks[0].attention_norm.weight[3] = 50.0  # an outlier  # pyright: ignore
    with torch.no_grad():
        want = run()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert smooth(model, run) == (4 if config.gated else 3) * config.num_layers
    with torch.no_grad():
        torch.testing.assert_close(run(), want, rtol=0, atol=1e-9)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "blocks.0.attention_norm.weight" in moved
    assert "blocks.1.attention.out_linear.weight" in moved
    assert model.blocks[0].attention_norm.weight[3] < 25  # pyright: ignore


# ----------------------------------------------------------------------------------------------- the command line

BUILD = """
import dataclasses, torch
from isoformer.models.families import decoder

def build():
    config = dataclasses.replace(decoder.TINY, hidden_size=64, head_dim=16, intermediate_size=96, max_positions=400)
    torch.manual_seed(5)
    model = decoder.Model(config).eval()
    with torch.no_grad():
        model.tokens.weight.mul_(0.2)
    return model, decoder.signature(config)
"""


def test_the_way_through_the_command_line(tmp_path, isoformer):
    (tmp_path / "built.py").write_text(BUILD)
    (tmp_path / "short.txt").write_text("abc")
    made = isoformer("export", "-m", "built:build", "low", "--precision", "int8", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "cpu-int8: perplexity" in made.stdout
    verified = isoformer("verify", "low", "--runtime", "ort", "--json", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    lines = [json.loads(line) for line in verified.stdout.splitlines()]
    runtimes = {line["runtime"] for line in lines[:-1] if line["check"] == "decoding"}
    assert runtimes == {"onnxruntime cpu", "onnxruntime cpu-float32", "onnxruntime cpu-int8"}
    assert "cpu-int8, shared cache, perplexity" in isoformer("inspect", "low", cwd=tmp_path).stdout
    for wrong, said in (
        (("export", "-m", "built:build", "x", "--precision", "int3"), "precision 'int3' is not one of fp32"),
        (("export", "-m", "built:build", "x", "--reproducible"), "is for decoders with --precision int8"),
        (("export", "-m", "built:build", "x", "--text", "short.txt"), "is for a quality gate, which float32 has not"),
        (("export", "-m", "built:build", "x", "--precision", "int8", "--text", "short.txt"), "has 3 tokens"),
    ):
        refused = isoformer(*wrong, cwd=tmp_path)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "x").exists()
