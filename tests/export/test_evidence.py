"""Evidence: the bounds, what is kept for later, and that a wrong runner never passes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoformer.export import ExportError, export
from isoformer.export.evidence import Evidence, gather, torch_runner
from isoformer.models.signature import Axis, Signature, TensorSpec
from isoformer.runtime import cases
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import FACTOR, SAMPLES, ULP, Report, sample_indices
from isoformer.runtime.verify import SMALL

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
BATCH, LENGTH = "batch_size", "sequence_length"

SIGNATURE = Signature(
    (
        TensorSpec("input_ids", "int64", (BATCH, LENGTH), high=300),
        TensorSpec("attention_mask", "int64", (BATCH, LENGTH), kind="mask"),
    ),
    (TensorSpec("tokens", "float32", (BATCH, LENGTH, 37)), TensorSpec("pooled", "float32", (BATCH, 37))),
    {LENGTH: Axis(1, 31)},
)
PLAIN = RuntimeSignature.read(SIGNATURE.to_dict())
GRID = list(cases.grid(PLAIN))


class Mean(nn.Module):
    """The mean over the tokens that take part, and that mean added to every token."""

    def __init__(self, least: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 11)
        self.linear = nn.Linear(11, 37)
        self.least = least

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.linear(self.table(input_ids))
        kept = attention_mask[:, :, None].to(x.dtype)
        pooled = (x * kept).sum(1) / kept.sum(1).clamp(min=self.least)
        return {"pooled": pooled, "tokens": x + pooled[:, None]}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(5)
    return Mean()


def collect(model: nn.Module, *runners: Run, signature: Signature = SIGNATURE) -> Evidence:
    named = {f"runner {number}": run for number, run in enumerate(runners)}
    return gather(model, signature, named, lambda _stage, _done, _total: None)


@pytest.fixture(scope="module")
def found(model: nn.Module) -> Evidence:
    """The evidence of a good runner."""
    return collect(model, torch_runner(model, SIGNATURE, torch.float32))


def altered(model: nn.Module, change: Callable[[Arrays, Arrays], None]) -> Run:
    """PyTorch float32 with its outputs changed; the change is given the inputs too."""
    run = torch_runner(model, SIGNATURE, torch.float32)

    def wrong(inputs: Arrays) -> Arrays:
        outputs = {name: value.copy() for name, value in run(inputs).items()}
        change(outputs, inputs)
        return outputs

    return wrong


# ---------------------------------------------------------------------------------------------- runners


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "float64"), (torch.float32, "float32")])
def test_torch_runner(model: nn.Module, dtype: torch.dtype, name: str) -> None:
    inputs = GRID[-1].inputs(PLAIN)
    outputs = torch_runner(model, SIGNATURE, dtype)(inputs)
    assert list(outputs) == ["tokens", "pooled"]
    assert {value.dtype for value in outputs.values()} == {np.dtype(name)}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_torch_runner_converts_inputs_and_evaluates() -> None:
    """Dropout is off, and floats come in the runner's own precision."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float64
            return self.dropout(x) / 3

    signature = Signature((TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    model = Half().train()
    x = np.arange(7, dtype=np.float32)
    np.testing.assert_array_equal(torch_runner(model, signature, torch.float64)({"x": x})["y"], x.astype("float64") / 3)
    assert model.training


def test_good_runner_passes(found: Evidence) -> None:
    report = Report(found.comparisons)
    assert report.passed
    assert report.cases == len(GRID) == 6 * 3 * 4  # the golden vectors are all of the grid
    assert len(found.comparisons) == 2 * len(GRID)
    assert {(c.runtime, c.check) for c in found.comparisons} == {("runner 0", "grid")}
    assert report.values == sum(c.batch * (c.length + 1) * 37 for c in GRID)


def test_every_runner_is_compared(model: nn.Module) -> None:
    good = torch_runner(model, SIGNATURE, torch.float64)
    comparisons = collect(model, good, altered(model, lambda outputs, _: outputs["pooled"].fill(7))).comparisons
    assert {c.runtime for c in comparisons if c.output == "pooled" and not c.passed} == {"runner 1"}
    assert all(c.error == 0 for c in comparisons if c.runtime == "runner 0")


def test_reference_evaluator_is_given_small_cases(model: nn.Module) -> None:
    sizes: list[int] = []
    run = torch_runner(model, SIGNATURE, torch.float32)

    def slow(inputs: Arrays) -> Arrays:
        sizes.append(max(array.size for array in inputs.values()))
        return run(inputs)

    comparisons = gather(model, SIGNATURE, {"onnx reference evaluator": slow}, lambda *_: None).comparisons
    small = [c for c in GRID if c.batch * c.length <= SMALL]
    assert 0 < len(small) < len(GRID)
    assert sorted(sizes) == sorted(c.batch * c.length for c in small)
    assert {c.case for c in comparisons} == {c.name for c in small}


def test_progress(model: nn.Module) -> None:
    steps: list[tuple[str, int, int]] = []
    gather(model, SIGNATURE, {}, lambda *step: steps.append(step))
    assert steps == [("parity", number, len(GRID)) for number in range(len(GRID) + 1)]


# -------------------------------------------------------------------------------- bounds and tolerances


def own_bounds(model: nn.Module) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each case and output: PyTorch float32's error and the bound of that case alone."""
    reference, float32 = (torch_runner(model, SIGNATURE, dtype) for dtype in (torch.float64, torch.float32))
    table = {}
    for case in GRID:
        inputs = case.inputs(PLAIN)
        wanted, single = reference(inputs), float32(inputs)
        errors = {name: float(np.abs(single[name] - value).max()) for name, value in wanted.items()}
        table[case.name] = {
            name: (errors[name], 4 * max(errors[name], 2.0**-23 * float(np.abs(value).max())))
            for name, value in wanted.items()
        }
    return table


def test_bounds_are_the_largest_of_their_length(model: nn.Module, found: Evidence) -> None:
    own = own_bounds(model)
    assert list(found.grid) == [case.name for case in GRID]
    for case in GRID:
        beside = [c.name for c in GRID if c.length == case.length]
        assert len(beside) == 6 * len({c.batch for c in GRID})
        for name, record in found.grid[case.name].items():
            assert record["torch_error"] == own[case.name][name][0]
            assert record["bound"] == max(own[other][name][1] for other in beside)
            assert record["bound"] >= own[case.name][name][1]


def test_bounds_differ_between_sizes_and_outputs(found: Evidence) -> None:
    assert found.grid["none-1x1"]["tokens"]["bound"] != found.grid["none-5x31"]["tokens"]["bound"]
    assert found.grid["none-5x31"]["pooled"]["bound"] != found.grid["none-5x31"]["tokens"]["bound"]


def test_comparisons_are_held_to_the_bounds_that_are_written_down(found: Evidence) -> None:
    for comparison in found.comparisons:
        assert comparison.bound == found.grid[comparison.case][comparison.output]["bound"] > 0


def test_shapes_are_written_down(found: Evidence) -> None:
    assert found.grid["left-5x31"]["tokens"]["shape"] == [5, 31, 37]
    assert found.grid["left-5x31"]["pooled"]["shape"] == [5, 37]


def test_tolerances(found: Evidence) -> None:
    assert list(found.tolerances) == ["tokens", "pooled"]
    for name, tolerance in found.tolerances.items():
        records = [record[name] for record in found.grid.values()]
        assert tolerance == {
            "absolute": max(record["bound"] for record in records),
            "torch_float32_max_error": max(record["torch_error"] for record in records),
            "factor": FACTOR,
        }
        assert 0 < tolerance["absolute"] < 1e-4


def test_exact_module_is_bounded_by_units_in_the_last_place() -> None:
    """PyTorch float32 makes no error at all in a product with a power of two."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    signature = Signature((TensorSpec("x", "float32", (BATCH, 3)),), (TensorSpec("y", "float32", (BATCH, 3)),))
    evidence = collect(Twice(), lambda inputs: {"y": 2 * inputs["x"]}, signature=signature)
    assert Report(evidence.comparisons).passed
    assert evidence.tolerances["y"]["torch_float32_max_error"] == 0
    largest = max(float(np.abs(array).max()) for name, array in evidence.grid_arrays.items() if name.endswith("/y"))
    assert evidence.tolerances["y"]["absolute"] == FACTOR * ULP * largest


# -------------------------------------------------------------------------------------- what is kept


def test_inputs_of_the_grid_are_kept_whole(found: Evidence) -> None:
    for case in GRID:
        for name, value in case.inputs(PLAIN).items():
            kept = found.grid_arrays[f"{case.name}/{name}"]
            assert kept.dtype.itemsize < value.dtype.itemsize
            np.testing.assert_array_equal(kept.astype(value.dtype), value)


def test_reference_is_kept_at_the_sampled_places(model: nn.Module, found: Evidence) -> None:
    reference = torch_runner(model, SIGNATURE, torch.float64)
    whole = set()
    for case in GRID:
        for name, value in reference(case.inputs(PLAIN)).items():
            kept = found.grid_arrays[f"{case.name}/{name}"]
            assert kept.dtype == np.float64
            whole.add(value.size <= SAMPLES)
            wanted = value if value.size <= SAMPLES else value.reshape(-1)[sample_indices(value.size)]
            np.testing.assert_array_equal(kept, wanted)
    assert whole == {True, False}
    assert len(found.grid_arrays) == 4 * len(GRID)


@pytest.mark.parametrize(("low", "high"), [(-3, 5), (-300, -200), (0, 70_000), (0, 2**40), (-(2**40), 7)])
def test_integers_of_every_range_are_kept_exactly(low: int, high: int) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.get_default_dtype()).sum(1)

    signature = Signature(
        (TensorSpec("x", "int64", (BATCH, 7), low=low, high=high),), (TensorSpec("y", "float32", (BATCH,)),)
    )
    plain = RuntimeSignature.read(signature.to_dict())
    arrays = collect(Sum(), signature=signature).grid_arrays
    for case in cases.grid(plain):
        value = case.inputs(plain)["x"]
        np.testing.assert_array_equal(arrays[f"{case.name}/x"].astype(np.int64), value)


def test_golden_vectors_are_the_reference(model: nn.Module, found: Evidence) -> None:
    reference = torch_runner(model, SIGNATURE, torch.float64)
    by_name = {case.name: case for case in GRID}
    assert found.golden
    for name, (inputs, outputs) in found.golden.items():
        for spec, value in by_name[name].inputs(PLAIN).items():
            np.testing.assert_array_equal(inputs[spec], value)
            assert inputs[spec].dtype == value.dtype
        for output, value in reference(inputs).items():
            assert outputs[output].dtype == np.float32
            np.testing.assert_array_equal(outputs[output], value.astype(np.float32))


# ---------------------------------------------------------------------------------------- wrong runners


def add(size: float) -> Callable[[Arrays, Arrays], None]:
    def change(outputs: Arrays, _: Arrays) -> None:
        for value in outputs.values():
            value += size

    return change


def put(value: float) -> Callable[[Arrays, Arrays], None]:
    def change(outputs: Arrays, _: Arrays) -> None:
        for array in outputs.values():
            array.reshape(-1)[-1] = value

    return change


@pytest.mark.parametrize("size", [1e-3, -1e-3, 1e-5])
def test_answers_that_are_off_fail_everywhere(model: nn.Module, size: float) -> None:
    comparisons = collect(model, altered(model, add(size))).comparisons
    assert comparisons
    assert not any(c.passed for c in comparisons)
    assert all(c.error == pytest.approx(abs(size), rel=0.2) for c in comparisons)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails_everywhere(model: nn.Module, value: float) -> None:
    comparisons = collect(model, altered(model, put(value))).comparisons
    assert comparisons
    assert not any(c.passed for c in comparisons)
    assert all("1 of" in c.note for c in comparisons)


def test_only_what_is_wrong_fails(model: nn.Module) -> None:
    """The graph of a model that gives a sequence without keys the mean of its padding."""

    def change(outputs: Arrays, inputs: Arrays) -> None:
        outputs["pooled"][~inputs["attention_mask"].any(1)] += 1

    failures = Report(collect(model, altered(model, change)).comparisons).failures
    assert {(c.case.split("-")[0], c.output) for c in failures} == {("sample", "pooled")}
    assert len(failures) == 3 * 4


def test_other_shapes_fail(model: nn.Module) -> None:
    def change(outputs: Arrays, _: Arrays) -> None:
        outputs["pooled"] = outputs["pooled"][:, :, None]

    comparisons = collect(model, altered(model, change)).comparisons
    assert {c.output for c in comparisons if not c.passed} == {"pooled"}
    assert all("shape" in c.note for c in comparisons if not c.passed)


def test_a_wrong_runner_does_not_widen_the_bounds(model: nn.Module, found: Evidence) -> None:
    wrong = collect(model, altered(model, add(1e-3)))
    assert wrong.grid == found.grid
    assert wrong.tolerances == found.tolerances


def test_module_that_answers_nan_does_not_pass() -> None:
    """Nothing over nothing for a sequence without keys, in the reference and in the candidate alike."""
    torch.manual_seed(5)
    model = Mean(least=0.0)
    comparisons = collect(model, torch_runner(model, SIGNATURE, torch.float32)).comparisons
    for comparison in comparisons:
        assert comparison.passed == (not comparison.case.startswith("sample"))


class Overflow(nn.Module):
    """1 in float64; infinity over infinity in float32."""

    def forward(self, x: Tensor) -> Tensor:
        large = (x * 0 + 100).exp()
        return large / large


ROWS_OF_3 = Signature((TensorSpec("x", "float32", (BATCH, 3)),), (TensorSpec("y", "float32", (BATCH, 3)),))


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0])
def test_bound_of_a_module_that_overflows_lets_nothing_pass(value: float) -> None:
    comparisons = collect(
        Overflow(), lambda inputs: {"y": np.full_like(inputs["x"], value)}, signature=ROWS_OF_3
    ).comparisons
    assert comparisons
    assert not any(c.passed for c in comparisons)


@pytest.mark.parametrize("module", ["nan", "overflow"])
def test_module_that_is_not_finite_is_not_exported(module: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model, signature = (Mean(least=0.0), SIGNATURE) if module == "nan" else (Overflow(), ROWS_OF_3)
    with pytest.raises(ExportError, match="does not compute the same") as caught:
        export(model, signature, tmp_path / "package")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_module_whose_answer_is_always_zero_is_exported(tmp_path: Path) -> None:
    """A branch that starts at zero, as in many residual models: equal values, a bound of zero, no error."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    package = export(Zero(), ROWS_OF_3, tmp_path / "package")
    assert {entry["worst_share_of_bound"] for entry in package.manifest["parity"].values()} == {0.0}
