"""From a PyTorch module and its Signature to an ONNX graph. Everything about the edge comes from the Signature."""

import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from isoformer.export import translations
from isoformer.export.errors import ExportError
from isoformer.export.passes import apply_all
from isoformer.models.signature import Axis, Signature

OPSETS = range(20, 26)  # torch writes a broken model at 26
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


class Edge(nn.Module):
    """The model between its named inputs and outputs, with the axes that the Signature says are equal held equal."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self.signature = signature

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        sizes: dict[str, int] = {}
        for spec, tensor in zip(self.signature.inputs, tensors, strict=True):
            for axis, size in zip(spec.axes, tensor.shape, strict=True):
                if isinstance(axis, str):
                    torch._check(size == sizes.setdefault(axis, size))
        for name, axis in self.signature.axes.items():
            if axis.sum_of and name in sizes and axis.times == 1:
                torch._check(sizes[name] == axis.total(sizes))
        names = [spec.name for spec in self.signature.inputs]
        return in_order(self.model(**dict(zip(names, tensors, strict=True))), self.signature)


def in_order(outputs: Any, signature: Signature) -> tuple[Tensor, ...]:
    """What forward returned, a tensor, a tuple or tensors by name, in the Signature's order.

    Raises ExportError when names or their number are not the Signature's.
    """
    names = [spec.name for spec in signature.outputs]
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    if isinstance(outputs, dict):
        if set(outputs) != set(names):
            raise ExportError(f"the model returns {', '.join(outputs)}; its signature says {', '.join(names)}")
        return tuple(outputs[name] for name in names)
    if not isinstance(outputs, tuple | list) or len(outputs) != len(names):
        found = len(outputs) if isinstance(outputs, tuple | list) else type(outputs).__name__
        raise ExportError(f"the model returns {found}; its signature says {', '.join(names)}")
    return tuple(outputs)


def to_onnx(model: nn.Module, signature: Signature, opset: int) -> ir.Model:
    """The graph, after every pass of `export.passes`.

    Raises ExportError for an opset out of range and when PyTorch cannot trace the model with its
    axes left open.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported; it goes from {OPSETS[0]} to {OPSETS[-1]}")
    samples = _samples(signature)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every torchvision operator that is absent
    logging.getLogger("torch._guards").setLevel(logging.CRITICAL)  # it prints what the error says
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's internals about each other
            dims = _dims(signature)
            shapes = [{i: dims[a] for i, a in enumerate(spec.axes) if isinstance(a, str)} for spec in signature.inputs]
            program = torch.onnx.export(
                Edge(model, signature),
                samples,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=(tuple(shapes),),
                custom_translation_table=translations.table(opset),
                verbose=False,
            )
    except Exception as error:  # torch wraps whatever happened into classes of its own
        raise ExportError(_reason(error)) from error
    if program is None:
        raise ExportError("PyTorch exported nothing")
    graph = program.model
    graph.producer_name, graph.producer_version = "isoformer", None
    traced = program.exported_program.graph.nodes if program.exported_program else ()
    calls = sum(node.target is translations.SDPA for node in traced)
    _name_sums(graph, signature)
    _name_parts(graph, signature, program.exported_program)
    apply_all(graph)
    # Two calls that compute the same may have become one.
    if opset >= 23 and not bool(calls) <= attention_calls(graph) <= calls:
        raise ExportError(f"{calls} calls of attention became {attention_calls(graph)} Attention nodes")
    return graph


def attention_calls(graph: ir.Model) -> int:
    """How many Attention operators stand in the graph."""
    return sum(node.op_type == "Attention" and node.domain == "" for node in graph.graph)


def _samples(signature: Signature) -> tuple[Tensor, ...]:
    """Inputs to trace with: every axis another prime, so that no two are taken for one; each its own tensor."""
    sizes: dict[str, int] = {}
    for name in signature.axis_names():
        axis = signature.axes.get(name, Axis())
        if axis.parts:
            continue
        fitting = [p for p in PRIMES if p >= axis.min and (axis.max is None or p <= axis.max)]
        sizes[name] = next((p for p in fitting if p not in sizes.values()), axis.max or axis.min)
    sizes |= {name: axis.total(sizes) for name, axis in signature.axes.items() if axis.parts}
    samples = []
    for spec in signature.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        if spec.kind != "value" or spec.dtype == "bool":
            samples.append(torch.ones(shape, dtype=getattr(torch, spec.dtype)))
        else:
            samples.append(torch.full(shape, spec.low, dtype=getattr(torch, spec.dtype)))
    return tuple(samples)


def _dims(signature: Signature) -> dict[str, Any]:
    """Axis name → what torch.export calls it."""
    axes = {name: signature.axes.get(name, Axis()) for name in signature.axis_names()}
    dims: dict[str, Any] = {
        n: torch.export.Dim(n, min=axis.min, max=axis.max) for n, axis in axes.items() if not axis.parts
    }
    for name, axis in axes.items():
        if len(axis.sum_of) == 1:
            dims[name] = axis.times * dims[axis.sum_of[0]]
        elif axis.sum_of:
            dims[name] = torch.export.Dim.DYNAMIC  # what it is the sum of, `Edge` says
    return dims


def _name_sums(graph: ir.Model, signature: Signature) -> None:
    """Gives the axes that are sums or products the Signature's names at the edge, where they are those.

    PyTorch invents a name for an input's, and calls an output's by that name, "a + b" or "a*b + 1".
    """
    products = {name: axis for name, axis in signature.axes.items() if axis.product_of}
    sums = {
        name: {f"{axis.times}*{axis.sum_of[0]}"} if axis.times > 1 else set(axis.sum_of)
        for name, axis in signature.axes.items()
        if axis.sum_of
    }
    invented: set[tuple[str, str]] = set()
    for values, specs in ((graph.graph.inputs, signature.inputs), (graph.graph.outputs, signature.outputs)):
        for value, spec in zip(values, specs, strict=False):
            if value.shape is None or len(value.shape) != len(spec.axes):
                continue
            shape = list(value.shape)
            for i, name in enumerate(spec.axes):
                if not isinstance(name, str) or isinstance(shape[i], int):
                    continue
                found = str(shape[i])
                if name in products and _is_product(found, products[name]):
                    shape[i] = ir.SymbolicDim(name)
                if name not in sums:
                    continue
                if specs is signature.inputs:
                    invented.add((name, found))
                if (name, found) in invented or set(found.split(" + ")) == sums[name]:
                    shape[i] = ir.SymbolicDim(name)
            value.shape = ir.Shape(shape)


def _is_product(found: str, axis: Axis) -> bool:
    factors, _, plus = found.partition(" + ")
    return sorted(factors.split("*")) == sorted(axis.product_of) and (plus or "0") == str(axis.plus)


def _name_parts(graph: ir.Model, signature: Signature, traced: Any) -> None:
    """Gives the outputs' axes the Signature's names where no input has them alone, but one has a multiple of them.

    PyTorch calls num_frames "s44" where the inputs only say that num_samples are 160 times as many.
    """
    if traced is None:
        return
    shapes = {node.name: node.meta["val"].shape for node in traced.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    for spec, traced_name in zip(signature.inputs, traced.graph_signature.user_inputs, strict=True):
        for axis, size in zip(spec.axes, shapes[traced_name], strict=True):
            sums = signature.axes.get(axis, Axis()) if isinstance(axis, str) else Axis()
            if sums.times > 1 and isinstance(size, torch.SymInt):
                names[str(size.node.expr / sums.times)] = sums.sum_of[0]
    for value in graph.graph.outputs:
        if value.shape is not None:
            found = [dim if isinstance(dim, int) else names.get(str(dim), str(dim)) for dim in value.shape]
            value.shape = ir.Shape(found)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None and not isinstance(error, ExportError):
        error = error.__cause__
    text = " ".join(str(error).split())
    if any(words in text for words in ("Constraints violated", "specialized", "is inconsistent")):
        return (
            "an axis of the signature is not free in the model: the code compares it with another "
            f"size or treats one size specially ({text[:300]})"
        )
    return text[:400] if isinstance(error, ExportError) else f"PyTorch cannot trace the model: {text[:400]}"
