"""ONNX's own node tests: all of them in PyTorch, a telling sample as graphs, all graphs in the slow tier."""

import dataclasses

import numpy as np
import pytest

from isoformer.models import attention, masks
from tests.conformance import cases, graphs, pytorch, report

CASES = cases.collect()
SAMPLE = {
    "attention_3d_gqa_attn_mask",
    "attention_4d_with_qk_matmul",  # mode 0
    "attention_4d_with_qk_matmul_softcap",  # mode 1
    "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",  # mode 2, a mask that all heads share
    "attention_24_fullymasked_qk_matmul_output_mode3_zero",
    "attention_4d_diff_heads_mask4d_padded_kv",  # a mask shorter than the keys, and lengths
    "attention_4d_causal_nonpad_negative_offset_structural_empty",
    "attention_bidirectional_window",
    "attention_local_window_with_past",
    "attention_local_window_ext_cache_rank2_mask",  # a mask that all queries share
    "attention_local_window_ext_cache_rank3_head_mask",
    "rotary_embedding_with_interleaved_rotary_dim",
    "rms_normalization_4d_axis1",
    "tensorscatter_circular",
}


def find(name: str) -> cases.Case:
    return next(case for case in CASES if str(case) == name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pytorch(case: cases.Case) -> None:
    case.compare(pytorch.run(case))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=() if str(case) in SAMPLE else pytest.mark.slow) for case in CASES]
)
def test_graph(case: cases.Case) -> None:
    case.compare(graphs.run(case))


def test_every_case_of_the_sample_exists() -> None:
    assert {str(case) for case in CASES} >= SAMPLE


def test_the_open_axes_of_a_graph() -> None:
    """Everything that Attention leaves open is open; a short mask and the head sizes are fixed."""
    by_name = {spec.name: spec.axes for spec in graphs.signature(find("attention_4d_with_past_and_present")).inputs}
    assert by_name["K"] == by_name["V"] == ("batch", 3, "keys", 8)
    assert by_name["past_value"] == ("batch", 3, "past", 8)
    assert by_name["attn_mask"] == ("queries", "total")
    short = graphs.signature(find("attention_4d_diff_heads_mask4d_padded_kv"))
    assert short.inputs[3].axes == ("batch", 3, "queries", 4)
    assert short.axes["keys"].min == 4


@pytest.mark.parametrize("module", [pytorch, graphs], ids=["pytorch", "graph"])
def test_another_function_does_not_pass(module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns compute with isoformer.models, so a fault there shows in them."""
    causal = masks.causal
    monkeypatch.setattr(masks, "causal", lambda rows, keys, **_: causal(rows, keys))  # offset lost
    case = find("attention_4d_causal")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        case.compare(module.run(case))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answers: answers[:-1],
        lambda answers: [*answers[:-1], answers[-1].astype(np.float64)],
        lambda answers: [*answers[:-1], answers[-1][..., None]],
        lambda answers: [*answers[:-1], answers[-1] * np.float32(1.01)],
        lambda answers: [*answers[:-1], answers[-1] * np.float32("nan")],
    ],
    ids=["output missing", "dtype", "shape", "value", "nan"],
)
def test_every_output_is_compared(spoil) -> None:
    case = find("attention_4d_with_past_and_present_qk_matmul")
    answers = pytorch.run(case)
    assert len(answers) == 4
    with pytest.raises(AssertionError):
        case.compare(spoil(answers))


def test_fewer_cases_than_expected_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.NUMBERS, "TensorScatter", 99)
    with pytest.raises(RuntimeError, match=r"ships 3 node tests of TensorScatter; 99 are expected"):
        cases.collect.__wrapped__()


def test_a_total_below_the_required_one_is_a_shortfall() -> None:
    results = [report.Result(case, dict.fromkeys(report.COLUMNS)) for case in CASES]
    assert report.shortfalls(results) == []
    failing = dataclasses.replace(results[0], errors=dict.fromkeys(report.COLUMNS, "AssertionError: off"))
    assert report.shortfalls([failing, *results[1:]]) == [
        "ours, PyTorch: 92 cases of Attention pass; 93 must",
        "ours, graph in ONNX Runtime: 92 cases of Attention pass; 93 must",
    ]
    assert len(report.shortfalls([])) == 8


def test_the_page_names_what_does_not_pass() -> None:
    results = [report.Result(case, dict.fromkeys(report.COLUMNS)) for case in CASES]
    assert "Everything passes." in report.page(results)
    error = {"ONNX Runtime alone": "InvalidGraph: no such attribute"}
    failing = dataclasses.replace(results[0], errors=results[0].errors | error)
    page = report.page([failing, *results[1:]])
    assert "| attention_4d | 23 | pass | pass | FAIL |" in page
    assert "**ONNX Runtime alone**, `attention_4d`:\n\n    InvalidGraph: no such attribute" in page


def test_what_stops_a_case_is_its_error_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise ValueError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no\nkernel")

    monkeypatch.setattr(attention, "attend", refuse)
    errors = report.measure(find("attention_bidirectional_window")).errors
    assert errors["ours, PyTorch"] == "ValueError: no kernel"
    assert "left_window_size" in (errors["ONNX Runtime alone"] or "")
