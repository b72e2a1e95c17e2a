"""The script for a GPU, run without one: --provider cpu goes through all of its code but the GPU's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cuda import __main__ as script
from benchmarks.cuda import engines, proof
from isoformer.export.source import resolve
from isoformer.runtime.package import Package, load
from isoformer.runtime.tuning import Shape
from tests.conftest import ROOT, export_small

# As ONNX Runtime 1.31 writes them.
SAID = """
Operator=GroupQueryAttention Node=node_attention.cache DataType=fp16 SdpaKernel=XQA
Operator=GroupQueryAttention Node=node_attention_1.cache DataType=fp16 SdpaKernel=FLASH_ATTENTION NumSplits=2
[V:onnxruntime:, attention.cc:1392] ONNX Attention: using Memory Efficient Attention (batch=8, q_seq=128, past=no)
[V:onnxruntime:, attention.cc:1392] ONNX Attention: using Memory Efficient Attention (batch=8, q_seq=128, past=no)
[V:onnxruntime:, attention.cc:1350] ONNX Attention: using cuDNN SDPA (batch=8)
"""


def test_kernels_are_read_from_what_onnx_runtime_says() -> None:
    found = proof.kernels(SAID)
    assert found == {"FLASH_ATTENTION": 1, "Memory Efficient Attention": 2, "XQA": 1, "cuDNN SDPA": 1}
    assert proof.fused(found)
    unfused = proof.kernels("[V] Attention: using unified unfused path (is_gqa=0, head_size=32, softcap=0)")
    assert unfused == {"unified unfused": 1}
    assert not proof.fused(found | unfused)
    assert not proof.fused({"MATH": 6})
    assert proof.kernels("nothing") == {}
    assert not proof.fused({})


def test_what_native_code_writes_is_caught() -> None:
    with proof.caught() as said:
        os.write(1, b"SdpaKernel=XQA\n")
        os.write(2, b"ONNX Attention: using cuDNN SDPA (batch=1)\n")
        assert proof.kernels(said()) == {"XQA": 1, "cuDNN SDPA": 1}


def test_ratios_are_those_of_the_turns_and_answers_are_compared() -> None:
    times = {"isoformer-float32": (4.0, 9.0, 20.0), "isoformer-float16": (2.0, 3.0, 4.0)}
    rows = [
        {"package": "p", "shape": "1x5", "engine": e, "run_ms": t, "peak_mb": 7.0, "answer": [[0.5, n / 8]]}
        for n, (e, some) in enumerate(times.items())
        for t in some
    ]
    exact, half = script.summarise(rows, "isoformer-float32")
    assert half["run_ms"] == [2.5, 3.0, 3.5]
    assert half["run_times_faster"][1] == 3.0
    assert exact["run_times_faster"] == [1.0, 1.0, 1.0]
    assert half["largest_difference"] == 0.125
    assert script.agreement([[1, 2, 3, 5]], [[1, 2, 4, 5]]) == {"same_tokens": 0.75}
    script.show([exact, half], [{"package": "p", "shape": "1x5", "kernels": {}}], "isoformer-float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(0)  # as the engines of PyTorch have it
    source = resolve("encoder")
    path = tmp_path_factory.mktemp("cuda") / "tiny"
    return export_small(source.model, source.signature, path, task=source.task, providers=("cuda",))


def test_the_whole_command_without_a_gpu(encoder: Package, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "benchmarks.cuda", str(encoder.path), "--provider", "cpu", "--turns", "1"]
    done = subprocess.run(
        [*command, "--shapes", "2x7:9", "--out", str(out)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["provider"] == "cpu"
    assert lines[0]["versions"]["torch"]
    assert lines[1]["passed"]
    assert lines[2]["variant"] == "cuda-float16"
    exact, half = (line for line in lines if "summary" in line)
    assert (exact["summary"], half["summary"]) == engines.OURS
    assert 0 < half["largest_difference"] < 1e-2
    assert half["run_ms"][1] > 0
    assert "times faster than isoformer-float32" in " ".join(done.stderr.split())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_pytorch_computes_what_the_package_does(encoder: Package, precision: str) -> None:
    shape = Shape.parse("2x7:9")
    found = []
    for name in ("isoformer", "torch"):
        times, answer = engines.measure_of(f"{name}-{precision}", encoder.path, "cpu", "encoder")(shape)
        assert times["run_ms"] > 0
        found.append(np.array(answer))
    np.testing.assert_allclose(*found, rtol=0, atol={"float32": 1e-6, "float16": 1e-2}[precision])


def test_without_a_gpu_or_a_graph_for_it_one_line_says_so(encoder: Package, tiny_package: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU here")
    command = [sys.executable, "-m", "benchmarks.cuda", str(encoder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "CUDAExecutionProvider" in done.stderr
    assert done.stderr.count("\n") == 1
    with pytest.raises(SystemExit, match="has no cuda-float16: export it again with --provider cuda"):
        engines.opened(tiny_package, "cpu", "float16")


def test_usual_shapes_are_those_that_the_model_takes(encoder: Package) -> None:
    assert [str(shape) for shape in script.wanted_shapes(encoder, None)] == ["1x16"]
    assert [str(shape) for shape in script.wanted_shapes(encoder, "3x5:11")] == ["3x5:11"]


@pytest.mark.slow
def test_decoders_are_measured_by_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = ("hidden_size=64", "head_dim=16")
    source = resolve("decoder", None, options)
    path = tmp_path / "tiny"
    export_small(source.model, source.signature, path, task=source.task, providers=("cuda",))
    package = load(path)
    answers = {}
    for precision in ("float32", "float16"):
        session = engines.opened(path, "cpu", precision)
        times, answers[precision] = engines.ours(session, new=5)(Shape.parse("2x7"))
        assert times.keys() == {"prefill_ms", "token_ms"}
    measure = engines._torch_decoder(source.model.eval(), source.signature, torch.device("cpu"), package)
    _, tokens = measure(Shape.parse("2x7"))
    assert np.array(tokens)[:, :5].tolist() == answers["float32"]
