"""What must be true of a graph before it is written. Each check returns its findings, one line each."""

import onnx
import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.export.passes.tie_weights import SMALLEST, digest
from isoformer.models.signature import Signature


def check(graph: ir.Model, signature: Signature, opset: int) -> None:
    """Raises ExportError with the first finding, and how many more there are."""
    findings = [*axes(graph, signature), *operators(graph, opset), *duplicates(graph)]
    if not findings:
        findings = well_formed(graph)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise ExportError(f"the exported graph is not as promised: {findings[0]}{more}")


def axes(graph: ir.Model, signature: Signature) -> list[str]:
    """Names, dtypes and axes of inputs and outputs are the signature's, and open where it says so."""
    findings = []
    for kind, values, specs in (
        ("input", graph.graph.inputs, signature.inputs),
        ("output", graph.graph.outputs, signature.outputs),
    ):
        found, wanted = [value.name for value in values], [spec.name for spec in specs]
        if found != wanted:
            findings.append(f"the {kind}s are {found}; the signature says {wanted}")
            continue
        for value, spec in zip(values, specs, strict=True):
            shape = [] if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
            if shape != list(spec.axes):
                findings.append(f"{kind} {spec.name} has axes {shape}; the signature says {list(spec.axes)}")
            dtype = None if value.dtype is None else value.dtype.numpy().name
            if dtype != spec.dtype:
                findings.append(f"{kind} {spec.name} is {dtype}; the signature says {spec.dtype}")
    return findings


def operators(graph: ir.Model, opset: int) -> list[str]:
    """Standard operators only, of the opset that was asked for; no Attention node below opset 23."""
    nodes = list(graph.graph.all_nodes())  # those of branches and loops too
    findings = [f"operator {node.domain}::{node.op_type} is not standard ONNX" for node in nodes if node.domain]
    findings += [f"the graph has the function {name}" for name in graph.functions]
    if graph.opset_imports.get("") != opset:
        findings.append(f"the graph is of opset {graph.opset_imports.get('')}, not {opset}")
    whole = any(node.op_type == "Attention" for node in nodes)
    if opset < 23 and whole:
        findings.append(f"there is an Attention node, which opset {opset} does not have")
    return findings


def duplicates(graph: ir.Model) -> list[str]:
    """No weight stands in the graph twice, as it is or transposed, or for nothing."""
    findings, seen = [], {}
    for value in graph.graph.initializers.values():
        if not value.uses() and not value.is_graph_output():
            findings.append(f"initializer {value.name} is not used")
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is None or array.size < SMALLEST:
            continue
        prints = [digest(array)] + ([digest(array.T)] if array.ndim == 2 else [])
        other = next((seen[p] for p in prints if p in seen), None)
        if other is not None:
            findings.append(f"initializer {value.name} repeats {other}")
        seen[prints[0]] = value.name
    return findings


def well_formed(graph: ir.Model) -> list[str]:
    """onnx's own checker, with shape inference, on graphs that fit into one protocol-buffer message."""
    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    if size > 2**30:
        return []  # the file is checked by ONNX Runtime, which opens it
    try:
        onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"onnx's checker says: {' '.join(str(error).split())[:300]}"]
    return []
