"""Every family, at the opsets of old and new runtimes, against its own module in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from isoformer.export import export
from isoformer.export.evidence import torch_runner
from isoformer.models import registry
from isoformer.runtime import Session
from isoformer.runtime.cases import MASKS, sample
from isoformer.runtime.parity import bound, comparable, largest_error
from isoformer.runtime.verify import verify
from tests.conftest import require_gpu

# What differs between opsets is attention, and these have all kinds of it; 24 brings nothing that 23 and 25 have not.
BLOCKS = {20: ("attention", "decoder", "encoder"), 25: ("attention", "encoder")}


def packages():
    for name in registry.names():
        for opset in (20, 23, 24, 25):
            slow = opset != 23 and name not in BLOCKS.get(opset, ())
            yield pytest.param((name, opset), id=f"{name}-{opset}", marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="session", params=packages())
def package(request, tmp_path_factory):
    name, opset = request.param
    return exported(name, opset, tmp_path_factory.mktemp("family") / "package")


def exported(name: str, opset: int, path: Path):
    """The package, module and signature of each graph of a family's TINY configuration."""
    family = registry.load(name)
    model, signature = family.Model(family.TINY).eval(), family.signature(family.TINY)
    found = export(model, signature, path, task=family.task(family.TINY), opset=opset)
    parts = registry.graphs(model, signature)
    assert found.graphs.keys() == parts.keys()
    return [(found.graphs[name], *part) for name, part in parts.items()]


def test_export_measures_every_mask_in_both_runtimes(package):
    for found, _, signature in package:
        masks = {case.partition("-")[0] for case in found.manifest["grid"]}
        masked = any(spec.kind == "mask" for spec in signature.inputs)
        if masked:
            assert masks >= MASKS.keys() - {"row"}
        for runtime in ("onnxruntime cpu", "onnx reference evaluator"):
            assert found.manifest["parity"][runtime]["cases"] >= (21 if masked else 5)
            assert found.manifest["parity"][runtime]["worst_share_of_bound"] <= 1


def test_verify_passes_and_counts_what_it_compared(package):
    values = 0
    for found, _, signature in package:
        specs = (*signature.inputs, *signature.outputs)
        rows = all(spec.axes[:1] == ("batch_size",) for spec in specs)  # else they cannot be told apart
        report = verify(found, Session(found, threads=2).run, "onnxruntime cpu", seed=3)  # all other tests have one
        assert report.passed, [failure.line() for failure in report.failures]
        assert {c.check for c in report.comparisons} == {"golden", "grid", *(["relation"] if rows else [])}
        assert report.cases > len(found.manifest["grid"])
        assert report.values == sum(c.values for c in report.comparisons) > (10_000 if rows else 1000)
        values += report.values
    assert values > 10_000


def test_sizes_that_no_sample_had(package):
    """The module itself, at sizes that are neither the tracer's nor the grid's."""
    for found, model, signature in package:
        other_sizes(found, model, signature)


def other_sizes(found, model, signature):
    session = Session(found)
    reference, float32 = (torch_runner(model, signature, dtype) for dtype in (torch.float64, torch.float32))
    for batch, length in ((3, 13), (4, 37), (7, 5)):
        sizes = {axis: within(length, *found.signature.axes[axis]) for axis in found.signature.free_axes}
        if "batch_size" in sizes:
            sizes["batch_size"] = batch
        sizes = found.signature.complete(sizes)
        inputs = sample(found.signature, sizes, "ragged", np.random.default_rng(length))
        answers = (run(inputs) for run in (reference, float32, session.run))
        expected, torch_outputs, outputs = (comparable(found.signature, answer) for answer in answers)
        for name, value in expected.items():
            allowed = bound(largest_error(torch_outputs[name], value), value)
            assert largest_error(outputs[name], value) <= 2 * allowed, (name, batch, length)


def within(size: int, low: int, high: int | None) -> int:
    return max(low, size if high is None else min(size, high))


@pytest.mark.gpu
def test_cuda_computes_the_same(package):
    require_gpu()
    for found, _, _ in package:
        report = verify(found, Session(found, "cuda").run, "onnxruntime cuda", seed=3)
        assert report.passed, [failure.line() for failure in report.failures]
