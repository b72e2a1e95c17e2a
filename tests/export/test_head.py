"""The product with a large vocabulary in two steps."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from isoformer.export import gptq, head, quantize
from isoformer.models.families import decoder
from isoformer.runtime import Session
from isoformer.runtime.binding import Decoder
from isoformer.runtime.providers import open_session
from tests.conftest import export_small
from tests.export.test_variants import CONFIG, model_of

TOKENS, SIZE = 1031, 64


def tied(table: np.ndarray) -> ir.Model:
    """ids → rows of the table; x → x @ tableᵀ"""
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Transpose", ["table"], ["columns"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "columns"], ["logits"]),
        ],
        "tied",
        [
            helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "length"]),
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "places", SIZE]),
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("rows", "logits")],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The session, and the table of 8 bits."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((TOKENS, SIZE)).astype(np.float32)
    coarse = gptq.rounded(torch.from_numpy(table), torch.randn(200, SIZE, generator=torch.manual_seed(1))).numpy()
    model = tied(table)
    assert quantize.int4(model, offsets=False, coarse=coarse) == 1
    path = tmp_path_factory.mktemp("head") / "model.onnx"
    ir.save(model, path)
    scale = np.abs(table).max(1, keepdims=True) / 127
    return open_session(str(path)), np.round(table / scale) * scale, table


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 2), (2, 5)])
def test_the_likeliest_are_exact_and_the_others_nearly(case, shape):
    session, table8, table = case
    x = np.random.default_rng(shape).standard_normal((*shape, SIZE)).astype(np.float32)
    logits = session.run(["logits"], {"x": x, "ids": np.zeros((1, 1), np.int64)})[0]
    exact = x @ table8.T
    assert (logits.argmax(-1) == exact.argmax(-1)).all()
    largest = np.argsort(-logits, -1)[..., : head.CANDIDATES // 2]  # the last of the chosen may have been off
    found, wanted = (np.take_along_axis(values, largest, -1) for values in (logits, exact))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(logits - x @ table.T).max() < (4.0 if shape == (1, 1) else 1.0)  # 4 bits; 8


def test_one_row_is_in_4_bits_and_more_are_in_8(case):
    session, table8, _ = case
    x = np.random.default_rng(5).standard_normal((1, 1, SIZE)).astype(np.float32)
    one, two = (
        session.run(["logits"], {"x": rows, "ids": np.zeros((1, 1), np.int64)})[0][0, 0]
        for rows in (x, np.tile(x, (1, 2, 1)))
    )
    errors = [np.abs(logits - x[0, 0] @ table8.T).mean() for logits in (one, two)]
    assert errors[1] < 0.2 * errors[0]


def test_rows_of_the_table_are_looked_up_in_8_bits(case):
    session, table8, _ = case
    ids = np.array([[0, 7, TOKENS - 1]])
    rows = session.run(["rows"], {"x": np.ones((1, 1, SIZE), np.float32), "ids": ids})[0]
    np.testing.assert_allclose(rows, table8[ids], atol=1e-5)


def branches(package) -> int:
    graph = onnx.load(package.path / "variants/cpu-int4/model.onnx", load_external_data=False).graph
    return sum(node.op_type == "If" for node in graph.node)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_package_has_it_where_the_head_is_the_tokens_table(tmp_path, is_tied):
    config = dataclasses.replace(CONFIG, vocab_size=TOKENS, tied_embeddings=is_tied)
    made = export_small(model_of(config), decoder.signature(config), tmp_path / "int4", precision="int4")
    assert branches(made) == is_tied
    assert not [note for note in made.manifest["notes"] if "offsets" in note]
    (tmp_path / "shared").hardlink_to(made.path / "variants/cpu-int4/model.onnx_data")  # as converted packages do
    low, exact = (Decoder(Session(made, variant=f"cpu-{precision}")) for precision in ("int4", "float32"))
    prompts = np.random.default_rng(2).integers(0, TOKENS, (6, 9)).tolist()
    for prompt in prompts:
        mine, theirs = (one.start([prompt])[0][0] for one in (low, exact))
        assert np.corrcoef(mine, theirs)[0, 1] > 0.98


def test_where_nothing_else_is_rounded_steps_keep_their_bound(tmp_path):
    """Blocks on grids already, as Q4_0's are: what is left is the head's own error, in 4 bits where a row is alone."""
    config = dataclasses.replace(CONFIG, vocab_size=TOKENS)
    model = model_of(config)
    with torch.no_grad():
        for linear in gptq.products(model):
            linear.weight.copy_(gptq.rounded(linear.weight, torch.randn(99, linear.in_features)))
    made = export_small(model, decoder.signature(config), tmp_path / "int4", precision="int4")
    assert branches(made) == 1
    gate = made.variant("cpu-int4")["gate"]
    assert gate["whole_text"]["agreement"] >= gate["limits"]["agreement"]
