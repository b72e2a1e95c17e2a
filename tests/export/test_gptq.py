"""Weights moved onto grids of 4 bits, and the graphs that come of them."""

import dataclasses
from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from isoformer.export import gptq, quantize, variants
from isoformer.models.families import decoder
from isoformer.runtime import Session
from isoformer.runtime.binding import Decoder
from isoformer.runtime.providers import open_session
from tests.conftest import export_small
from tests.export.test_variants import CONFIG, model_of, run_product


def on_grids(rng: np.random.Generator, rows: int, columns: int, block: int = 32) -> np.ndarray:
    """(rows, columns), every block of a column whole multiples of a step, a zero among their 16 places."""
    blocks = rows // block
    step = rng.uniform(0.01, 0.3, (columns, blocks, 1)).astype(np.float32)
    places = rng.integers(0, 16, (columns, blocks, block)) - rng.integers(0, 16, (columns, blocks, 1))
    return (step * places.astype(np.float32)).reshape(columns, rows).T


def unpacked(packed: np.ndarray, scale: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    columns, blocks = scale.shape
    places, zero = (np.stack([x & 15, x >> 4], -1).reshape(columns, -1).astype(int) for x in (packed, zeros))
    return (scale[..., None] * (places.reshape(columns, blocks, -1) - zero[:, :blocks, None])).reshape(columns, -1).T


@pytest.mark.parametrize(("blocks", "block"), [(1, 32), (2, 32), (3, 32), (1, 64), (3, 64)])
def test_what_stands_on_a_grid_is_packed_without_an_offset_and_comes_out_as_it_was(blocks, block, tmp_path):
    rng = np.random.default_rng(blocks)
    w = on_grids(rng, block * blocks, 37, block)
    w[:block, 0], w[:block, 1] = 0.0, 0.25  # no range at all, and one value beside zero
    found = quantize.pack_whole(w)
    assert found is not None
    assert found[1].shape == (37, blocks)
    np.testing.assert_allclose(unpacked(*found), w, atol=1e-6)
    x = rng.standard_normal((1, 5, len(w))).astype(np.float32)
    np.testing.assert_allclose(run_product(w, quantize.int4, x, tmp_path), x @ w, atol=0.01 * np.abs(x @ w).max())


def test_what_stands_on_no_grid_has_8_bits_where_no_offsets_are_wanted(tmp_path):
    """Its error is a fifth of that in 4 bits, or less; what is left is the activations' 8 bits."""
    rng = np.random.default_rng(9)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((192, 37), (1, 5, 192)))
    exact = x.astype(np.float64) @ w
    errors = [
        np.abs(run_product(w, partial(quantize.int4, offsets=offsets), x, tmp_path) - exact).max()
        for offsets in (False, True)
    ]
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.parametrize("off", [0.01, 17.0])
def test_one_value_off_its_grid_is_noticed(off):
    """By a hundredth of its step, and by more steps than 4 bits count."""
    w = on_grids(np.random.default_rng(3), 64, 11)
    w[40, 7] += off * 0.01
    assert quantize.pack_whole(on_grids(np.random.default_rng(3), 64, 11)) is not None
    assert quantize.pack_whole(w) is None


def test_products_of_one_activation_are_one(tmp_path):
    """Those without offsets: of three, two; each gives what it gave alone."""
    rng = np.random.default_rng(2)
    weights = [on_grids(rng, 64, 33), rng.standard_normal((64, 17)).astype(np.float32), on_grids(rng, 64, 20)]
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)],
        "products",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "length", 64])],
        [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, None) for i in range(3)],
        [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    assert quantize.int4(model) == 3
    assert Counter(node.op_type for node in model.graph) >= Counter(MatMulNBits=2, Split=1)
    ir.save(model, tmp_path / "model.onnx")
    x = rng.standard_normal((2, 3, 64)).astype(np.float32)
    together = open_session(str(tmp_path / "model.onnx")).run(None, {"x": x})
    for y, w in zip(together, weights, strict=True):
        np.testing.assert_allclose(np.asarray(y), run_product(w, quantize.int4, x, tmp_path), atol=1e-5)


def test_rounding_makes_up_for_what_it_changes():
    """Of activations that go together, half of what rounding each value to its nearest changes, or less."""
    torch.manual_seed(0)
    x = torch.randn(700, 24) @ torch.randn(24, 96) + 0.1 * torch.randn(700, 96)
    weight = torch.randn(41, 96)
    mine = gptq.rounded(weight, x)
    grids = quantize.pack_whole(mine.numpy().T)
    assert grids is not None
    np.testing.assert_allclose(unpacked(*grids), mine.numpy().T, atol=1e-5)
    scale = grids[1]
    step = torch.from_numpy(scale).repeat_interleave(96 // scale.shape[1], 1)
    nearest = (weight / step).round() * step
    errors = [float(((w - weight) @ x.T).square().mean()) for w in (mine, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_what_stands_on_whole_grids_already_stays():
    """Their smallest value 0 and their largest 15 steps: the grid is found exactly, nothing is to be made up for."""
    rng = np.random.default_rng(5)
    places = rng.integers(0, 16, (13, 64))
    places[:, [0, 32]], places[:, [1, 33]] = 0, 15
    w = torch.from_numpy(places.astype(np.float32) * np.float32(0.1))
    x = torch.randn(300, 64, generator=torch.manual_seed(1))
    np.testing.assert_allclose(gptq.rounded(w, x), w, atol=1e-5)


@pytest.mark.parametrize("values", [(0.5, 1.0), (0.95, 1.05), (-0.3, -0.3)])
def test_blocks_of_one_sign_keep_what_they_are(values):
    """Whole zero points want 0 among the places, so the step is a fifteenth of the largest value."""
    generator = torch.Generator().manual_seed(4)
    weight = (
        torch.empty(23, 64).uniform_(*values, generator=generator)
        if values[0] < values[1]
        else torch.full((23, 64), -0.3)
    )
    x = torch.randn(500, 64, generator=generator)
    mine = gptq.rounded(weight, x)
    assert quantize.pack_whole(mine.numpy().T) is not None
    assert float(((mine - weight) @ x.T).square().mean() / (weight @ x.T).square().mean()) < 0.05**2


def test_weights_that_stand_on_grids_already_are_not_rounded_again():
    """As Q4_0's do, of which few blocks reach from the first place to the last."""
    model = model_of(CONFIG)
    linear = model.get_submodule("blocks.0.feed_forward.down")
    assert isinstance(linear, torch.nn.Linear)
    rng = np.random.default_rng(6)
    size, columns = linear.in_features // 32, linear.out_features
    places = rng.integers(-5, 6, (columns, size, 32)) * rng.uniform(0.01, 0.02, (columns, size, 1))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(places.reshape(columns, -1).astype(np.float32)))
    before = linear.weight.detach().clone()
    x = torch.randn(40, linear.in_features, generator=torch.manual_seed(1))
    assert linear not in gptq.products(model)
    seen = []
    gptq.round_blocks(model, lambda: linear(x), lambda done, total: seen.append((done, total)))
    assert not seen
    assert linear.weight.equal(before)
    assert not gptq.rounded(before, x).equal(before)


def test_the_products_of_a_block_are_rounded_but_for_queries_keys_and_values():
    model = model_of(CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(CONFIG.vocab_size, (3, 17), generator=torch.manual_seed(2))
    past = {
        f"past_key_values.{layer}.{kind}": torch.zeros(3, CONFIG.num_kv_heads or CONFIG.num_heads, 0, 16)
        for layer in range(CONFIG.num_layers)
        for kind in ("key", "value")
    }
    places = torch.arange(17).expand(3, -1)
    seen = []
    assert (
        gptq.round_blocks(
            model,
            lambda: model(
                ids, torch.ones_like(ids), places, logits_positions=torch.zeros(3, 1, dtype=torch.int64), **past
            ),
            lambda done, total: seen.append((done, total)),
        )
        is None
    )  # a vocabulary of so few tokens is none in two steps
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    ends = ("attention.out_linear", "feed_forward.gate", "feed_forward.up", "feed_forward.down")
    assert changed == {f"blocks.{i}.{end}.weight" for i in range(CONFIG.num_layers) for end in ends}
    assert seen == [(i + 1, len(changed)) for i in range(len(changed))]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("gptq") / "int4"
    return export_small(model_of(CONFIG), decoder.signature(CONFIG), path, precision="int4")


def products(package) -> Counter[tuple[int, int]]:
    """Bits and inputs of each product: 4 inputs with zero points, 3 without, whose offset is a product of its own."""
    graph = onnx.load(package.path / "variants/cpu-int4/model.onnx", load_external_data=False).graph
    found = [node for node in graph.node if node.op_type == "MatMulNBits"]
    return Counter((a.i, len(node.input)) for node in found for a in node.attribute if a.name == "bits")


def test_a_package_has_queries_keys_and_values_in_8_bits_and_the_rest_in_4(package):
    # Gate and up are one product.
    assert products(package) == {(8, 3): CONFIG.num_layers, (4, 4): 3 * CONFIG.num_layers}
    assert not [note for note in package.manifest["notes"] if "offsets" in note]


def test_where_the_gate_is_missed_so_the_offsets_stay(tmp_path, monkeypatch):
    real = gptq.rounded
    monkeypatch.setattr(gptq, "rounded", lambda *product: 50 * real(*product))
    made = export_small(model_of(CONFIG), decoder.signature(CONFIG), tmp_path / "int4", precision="int4")
    assert set(products(made)) == {(4, 3)}
    (note,) = (note for note in made.manifest["notes"] if "offsets" in note)
    assert "cpu-int4 has its offsets as products of their own; without them the quality gate is missed" in note
    assert made.variant("cpu-int4")["gate"]["ratio"] <= variants.GATES["int4"].perplexity


class Counting:
    """A decoder whose next token is one more than the last, nearly always."""

    limit = 100

    def __init__(self):
        self.together = []

    def start(self, rows):
        self.together.append(len(rows))
        return self.append(rows), 0

    def append(self, rows):
        return 20 * np.eye(50, dtype=np.float32)[[(row[-1] + 1) % 50 for row in rows]]


def test_the_text_is_drawn_from_the_model_s_own_probabilities():
    decoder_, seen = Counting(), []
    text = gptq.written(decoder_, [3, 5], lambda done, total: seen.append((done, total)))  # pyright: ignore
    assert text.shape == (gptq.SEQUENCES, Counting.limit)
    assert set(text[:, 0]) == {3, 5}
    assert (text[:, 1:] == (text[:, :-1] + 1) % 50).mean() > 0.99
    assert decoder_.together == [gptq.TOGETHER] * (gptq.SEQUENCES // gptq.TOGETHER)
    assert seen[-1] == (text.size, text.size)
    assert seen == sorted(seen)


def test_the_same_text_every_time(package):
    texts = [gptq.written(Decoder(Session(package)), [3, 5], lambda _done, _total: None) for _ in range(2)]
    assert (texts[0] == texts[1]).all()
    assert texts[0].shape == (gptq.SEQUENCES, gptq.LENGTH)
    assert len({tuple(row) for row in texts[0]}) == gptq.SEQUENCES


def test_a_model_of_too_few_positions_has_no_variants_and_says_so(tmp_path):
    config = dataclasses.replace(CONFIG, max_positions=3)
    made = export_small(model_of(config), decoder.signature(config), tmp_path / "short", precision="int4")
    assert not made.variants
    assert "no variants: a model of so few positions" in made.manifest["notes"][0]
