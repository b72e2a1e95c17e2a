"""The tools: modules that run in PyTorch, and ONNX graphs with what made them."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from benchmarks.masks.bert import KINDS
from benchmarks.masks.modules import Additive, Bert, Isoformer, MultiheadAttention, Sdpa, TimesScores, TimesWeights
from benchmarks.masks.problem import Array, B, D, H, L, problems
from isoformer.export.graph import to_onnx
from isoformer.models.signature import Signature, TensorSpec

NAMES = ("query", "key", "value", "mask")
FORMS = {"bool": "bool mask", "float": "float mask of −inf"}


@dataclass(frozen=True)
class Tool:
    """`make` gives an nn.Module, or for a graph an onnx.ModelProto.

    form: how the mask is given: bool (B, 1, L, L), float (0 and -inf, the same shape) or keys (0 and 1, (B, L)).
    """

    name: str
    make: Callable[[], Any]
    form: str = "bool"
    dtype: str = "float32"
    opset: int | None = None

    def problems(self) -> list[str]:
        """The names of those that its kind of mask can express."""
        return ["keys", "extreme"] if self.form == "keys" else ["rows", "extreme"]

    def feeds(self, name: str) -> dict[str, Array]:
        """A problem's arrays as this tool takes them."""
        problem = problems()[name]
        kind = getattr(ml_dtypes, self.dtype, self.dtype)
        arrays = [array.astype(kind) for array in (problem.query, problem.key, problem.value)]
        masks = {
            "bool": np.array(problem.mask),
            "float": np.where(problem.mask, 0, -np.inf).astype(kind),
            "keys": problem.mask[:, 0, 0].astype(np.int64),
        }
        return dict(zip(NAMES, (*arrays, masks[self.form]), strict=True))


class OptimumTool(Tool):
    """A graph of `bert`, which looks query, key and value up."""

    def feeds(self, name: str) -> dict[str, Array]:
        rows = np.arange(B * L).reshape(B, L) + self.problems().index(name) * B * L
        mask = problems()[name].mask[:, 0, 0].astype(np.int64)
        return {"input_ids": rows, "attention_mask": mask, "token_type_ids": np.zeros_like(rows)}

    def table(self) -> Array:
        """What is looked up: (problems * B * L, 3 * H * D)."""
        chosen = [problems()[name] for name in self.problems()]
        parts = [np.stack([p.query, p.key, p.value], axis=3).transpose(0, 2, 3, 1, 4) for p in chosen]
        return np.concatenate(parts).reshape(-1, 3 * H * D).astype(np.float32)


def eager_tools() -> list[Tool]:
    """What runs in PyTorch itself."""
    every = ("float32", "float64", "float16", "bfloat16")
    lowest = torch.finfo(torch.float32).min
    return [
        *(Tool("isoformer attend", Isoformer, dtype=t) for t in every),
        *(Tool("PyTorch SDPA, bool mask", Sdpa, dtype=t) for t in every),
        *(Tool("PyTorch SDPA, float mask of −inf", Sdpa, "float", t) for t in every),
        Tool("nn.MultiheadAttention, attn_mask", partial(MultiheadAttention, False, False)),
        Tool("nn.MultiheadAttention, attn_mask, need_weights", partial(MultiheadAttention, False, True)),
        Tool("nn.MultiheadAttention, key_padding_mask", partial(MultiheadAttention, True, False), "keys"),
        Tool("nn.MultiheadAttention, key_padding_mask, need_weights", partial(MultiheadAttention, True, True), "keys"),
        Tool("transformers BERT, eager", partial(Bert, "eager"), "keys"),
        Tool("transformers BERT, sdpa", partial(Bert, "sdpa"), "keys"),
        Tool("by hand: scores + finfo.min", partial(Additive, lowest)),
        Tool("by hand: scores − 10000", partial(Additive, -1e4)),
        Tool("by hand: scores × mask", TimesScores),
        Tool("by hand: weights × mask", TimesWeights),
    ]


def graph_tools() -> list[Tool]:
    """What is an ONNX graph."""
    halves = ("float32", "float16")
    bert = {kind: partial(Bert, kind) for kind in KINDS}

    def export_tool(what: str, module: Callable, form: str, opset: int, dtype: str = "float32", **how: Any) -> Tool:
        make = partial(exported, module, form, dtype, opset, **how)
        return Tool(f"torch.onnx.export{what}", make, form, dtype, opset)

    tools = [Tool("isoformer", partial(ours, t, n), dtype=t, opset=n) for n in (20, 23) for t in halves]
    for form in ("bool", "float"):
        what = f" SDPA, {FORMS[form]}"
        tools += [export_tool(what, Sdpa, form, n, t) for n in (18, 20, 23) for t in halves]
        tools.append(export_tool(f" dynamo=False{what}", Sdpa, form, 18, dynamo=False))
    for kind, module in bert.items():
        tools += [export_tool(f" BERT {kind}", module, "keys", n) for n in (18, 20, 23)]
    tools.append(Tool("SDPA, bool mask, then ort_fusions", partial(fused, Sdpa, "bool", 20), opset=20))
    tools.append(Tool("BERT sdpa, then ort_fusions", partial(fused, bert["sdpa"], "keys", 20), "keys", opset=20))
    for form in ("bool", "float"):
        name = f"standard Attention, {FORMS[form]}"
        tools += [Tool(name, partial(standard, form, t, n), form, t, n) for n in (23, 24) for t in halves]
    name = "com.microsoft MultiHeadAttention, "
    tools.append(Tool(f"{name}key_padding_mask", partial(contrib, "keys"), "keys", opset=20))
    tools.append(Tool(f"{name}attention_bias of −inf", partial(contrib, "float"), "float", opset=20))
    return tools


def exported(module: Callable[[], nn.Module], form: str, dtype: str, opset: int, *, dynamo: bool = True) -> Any:
    """The graph that torch.onnx.export writes."""
    tool = Tool("", lambda: None, form, dtype)
    samples = tuple(torch.from_numpy(a) for a in tool.feeds("keys").values())
    names: dict[str, Any] = {"input_names": list(NAMES), "output_names": ["output"], "opset_version": opset}
    with quiet():
        if dynamo:
            program = torch.onnx.export(module().eval(), samples, dynamo=True, verbose=False, **names)
            assert program is not None  # noqa: S101
            return program.model_proto
        file = io.BytesIO()
        torch.onnx.export(module().eval(), samples, file, dynamo=False, **names)  # pyright: ignore[reportArgumentType]
        return onnx.load_from_string(file.getvalue())


def fused(module: Callable[[], nn.Module], form: str, opset: int) -> Any:
    """The same after onnxscript's fusions for ONNX Runtime; ValueError when they find no attention."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with quiet():
        model, counts = optimize_for_ort(ir.from_proto(exported(module, form, "float32", opset)))
    if not any(counts[name] for name in ("sdpa", "mha1", "mha2", "attention", "sdpa_via_mha")):
        raise ValueError("it fused no attention")
    return ir.to_proto(model)


def ours(dtype: str, opset: int) -> Any:
    """The graph that `isoformer export` writes of `attend`."""
    shape = ("batch_size", H, "length", D)
    tensors = (TensorSpec(name, dtype, shape) for name in NAMES[:3])
    mask = TensorSpec("mask", "bool", ("batch_size", 1, "length", "length"), kind="mask")
    signature = Signature((*tensors, mask), (TensorSpec("output", dtype, shape),))
    return ir.to_proto(to_onnx(Isoformer().eval(), signature, opset))


ONNX_TYPES = {"float32": "float", "float16": "float16"}


def standard(form: str, dtype: str, opset: int) -> onnx.ModelProto:
    """One Attention node."""
    kind = ONNX_TYPES[dtype]
    tensor, mask = f"{kind}[{B}, {H}, {L}, {D}]", f"{'bool' if form == 'bool' else kind}[{B}, 1, {L}, {L}]"
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : {opset}]>
        attention ({tensor} query, {tensor} key, {tensor} value, {mask} mask) => ({tensor} output)
        {{ output = Attention <scale = 1.0> (query, key, value, mask) }}""")


def contrib(form: str) -> onnx.ModelProto:
    """One MultiHeadAttention node of ONNX Runtime's own operators, between transpositions."""
    tensor, keys = f"float[{B}, {H}, {L}, {D}]", form == "keys"
    mask = f"int64[{B}, {L}]" if keys else f"float[{B}, 1, {L}, {L}]"
    flat = "\n".join(
        f"{x}_t = Transpose <perm = [0, 2, 1, 3]> ({x})\n{x}_flat = Reshape ({x}_t, flat)" for x in NAMES[:3]
    )
    given = "mask_int" if keys else '"", mask'
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        attention ({tensor} query, {tensor} key, {tensor} value, {mask} mask) => ({tensor} output) {{
            flat = Constant <value_ints = [0, 0, {H * D}]> ()
            apart = Constant <value_ints = [0, 0, {H}, {D}]> ()
            {flat}
            {"mask_int = Cast <to = 6> (mask)" if keys else ""}
            out = com.microsoft.MultiHeadAttention <num_heads = {H}, scale = 1.0>
                (query_flat, key_flat, value_flat, "", {given})
            out_apart = Reshape (out, apart)
            output = Transpose <perm = [0, 2, 1, 3]> (out_apart)
        }}""")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and fusions say about themselves."""
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
