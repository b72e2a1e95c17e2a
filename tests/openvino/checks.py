"""The OpenVINO provider itself, in an environment that has its plugin: make test-openvino.

Its name keeps it out of `make test`, whose environment has onnxruntime-gpu. PACKAGES holds `encoder`, an encoder of
random weights that was exported with --provider openvino.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoformer.runtime import ProviderError, Session, batching, padding
from isoformer.runtime.cases import Arrays
from isoformer.runtime.cost import Cost

PACKAGE = Path(os.environ["PACKAGES"]) / "encoder"
PRECISIONS = ("float32", "bfloat16")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "isoformer.runtime.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def errors(precision: str) -> list[float]:
    """Of the golden vectors, against the float64 reference; of hidden states those of real tokens."""
    session = Session.fastest(PACKAGE, "openvino", precision=precision)
    found = []
    for _, inputs, outputs in session.package.golden():
        one, other = (
            padding.without(session.signature, ["last_hidden_state"], inputs, values)
            for values in (session.run(inputs), outputs)
        )
        found += [float(np.abs(one[name] - other[name]).max()) for name in outputs]
    return found


def masked(rows: int = 5, length: int = 13) -> Arrays:
    rng = np.random.default_rng(11)
    mask = (np.arange(length) < rng.integers(1, length + 1, rows)[:, None]).astype(np.int64)
    mask[1], mask[2] = 0, rng.random(length) < 0.5
    ids, types = rng.integers(0, 101, (rows, length)), rng.integers(0, 2, (rows, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def test_verify_holds_both_precisions_to_the_reference_by_name() -> None:
    done = command("verify", PACKAGE, "--provider", "openvino", "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["runtime"] for line in lines[:-1]} >= {f"onnxruntime openvino-{name}" for name in PRECISIONS}
    assert lines[-1]["passed"]


def test_each_precision_is_what_it_is_called() -> None:
    exact, rough = (errors(precision) for precision in PRECISIONS)
    assert max(exact) < 1e-5
    assert max(rough) > 100 * max(exact)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_without_keys_is_exactly_zero(precision: str) -> None:
    session = Session.fastest(PACKAGE, "openvino", precision=precision)
    found = session.run(masked())["sentence_embedding"]
    assert not found[1].any()
    assert np.isfinite(found).all()
    assert found[0].any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rectangles_of_many_lengths_give_what_the_whole_batch_does(precision: str) -> None:
    session, inputs = Session.fastest(PACKAGE, "openvino", precision=precision), masked()
    cost = Cost(call=0)
    whole, cut = session.run(inputs), batching.run(session, inputs, cost=cost)
    bound = {"float32": 1e-5, "bfloat16": 0.1}[precision]
    assert np.abs(whole["sentence_embedding"] - cut["sentence_embedding"]).max() < bound
    real = inputs["attention_mask"].astype(bool)
    assert np.abs(whole["last_hidden_state"] - cut["last_hidden_state"])[real].max() < bound


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_with_padding_run_in_the_graph_for_them(precision: str) -> None:
    session, inputs = Session.fastest(PACKAGE, "openvino", precision=precision), masked(17, 23)
    whole = Session(PACKAGE, "openvino", variant=f"openvino-{precision}").run(inputs)
    found = session.run(inputs)
    real = inputs["attention_mask"].astype(bool)
    assert not found["last_hidden_state"][:, 1:][~real[:, 1:]].any()
    assert whole["last_hidden_state"][~real].any()
    bound = {"float32": 1e-5, "bfloat16": 0.1}[precision]
    assert np.abs(whole["last_hidden_state"] - found["last_hidden_state"])[real].max() < bound
    assert np.abs(whole["sentence_embedding"] - found["sentence_embedding"]).max() < bound


def test_the_canonical_graph_is_refused_in_one_line() -> None:
    with pytest.raises(ProviderError, match=r"does not run Attention .* --provider openvino") as caught:
        Session(PACKAGE, "openvino")
    assert "\n" not in str(caught.value)


def test_the_commands_run_on_it() -> None:
    for precision in ("fp32", "bf16"):
        arguments = ("--provider", "openvino", "--precision", precision, "--json")
        done = command("bench", PACKAGE, "--batch", "1", "--length", "3", *arguments)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["median_ms"] > 0
    done = command("bench", PACKAGE, "--provider", "openvino", "--precision", "int8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
