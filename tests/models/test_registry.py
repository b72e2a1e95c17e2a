import inspect
import json
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest
import torch

from isoformer.models import families, registry
from isoformer.models.signature import Signature, TensorSpec


def test_a_file_in_families_is_a_family():
    assert families.__file__ is not None
    files = Path(families.__file__).parent.glob("*.py")
    assert registry.names() == sorted({file.stem for file in files} - {"__init__"})
    assert "encoder" in registry.names()


def test_load_gives_the_module():
    from isoformer.models.families import encoder

    assert registry.load("encoder") is encoder


@pytest.mark.parametrize("name", ["encodr", "", "__init__", "encoder.Model", "../registry", "os"])
def test_an_unknown_family_lists_those_there_are(name):
    with pytest.raises(ValueError, match="is not a family; there are: ") as error:
        registry.load(name)
    assert repr(name) in str(error.value)
    assert ", ".join(registry.names()) in str(error.value)


def sample(spec: TensorSpec, sizes: dict[str, int]) -> torch.Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
    dtype = getattr(torch, spec.dtype)
    if spec.kind == "mask":
        return torch.ones(shape, dtype=dtype)
    return (
        torch.randn(shape, dtype=dtype) if dtype.is_floating_point else torch.randint(spec.low, spec.high or 2, shape)
    )


@pytest.mark.parametrize("name", registry.names())
def test_every_family_gives_what_the_registry_promises(name):
    family = registry.load(name)
    assert isinstance(family.Config, type)
    assert is_dataclass(family.Config)
    assert isinstance(family.TINY, family.Config)
    with pytest.raises(FrozenInstanceError):
        setattr(family.TINY, fields(family.Config)[0].name, 5)
    task = family.task(family.TINY)
    assert task is None or isinstance(task["name"], str)
    assert json.loads(json.dumps(task)) == task
    graphs = registry.graphs(family.Model(family.TINY), family.signature(family.TINY))
    assert graphs
    assert all(isinstance(signature, Signature) for _, signature in graphs.values())


@pytest.mark.parametrize("name", registry.names())
def test_every_family_computes_what_its_signature_says(name):
    family = registry.load(name)
    torch.manual_seed(0)
    whole = family.Model(family.TINY).eval()
    for model, signature in registry.graphs(whole, family.signature(family.TINY)).values():
        computes(model, signature)
    assert sum(parameter.numel() for parameter in whole.parameters()) < 1_000_000


def computes(model, signature: Signature) -> None:
    names = [spec.name for spec in signature.inputs]
    parameters = inspect.signature(model.forward).parameters
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_position = [name for name, p in parameters.items() if p.kind in plain and name in names]
    assert by_position == names[: len(by_position)]
    by_name = [name for name in names if name in parameters]
    assert len(by_name) == len(names) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    sizes: dict[str, int] = dict(zip(signature.axis_names(), (2, 7, 5, 3, 11, 13, 17), strict=False))
    for axis, bounds in signature.axes.items():
        if bounds.parts:
            sizes[axis] = bounds.total(sizes)
    with torch.no_grad():
        outputs = model(**{spec.name: sample(spec, sizes) for spec in signature.inputs})
    assert list(outputs) == [spec.name for spec in signature.outputs]
    for spec in signature.outputs:
        assert outputs[spec.name].shape == tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
        assert outputs[spec.name].dtype == getattr(torch, spec.dtype)
        assert outputs[spec.name].isfinite().all()
