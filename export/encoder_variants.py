"""The other graphs of an encoder: layers that run on real tokens only, and 8 bits. Each is measured before it is kept.

cpu-float32   `padding_free`; its weights are the canonical graph's file; held to the canonical graph's bounds
cpu-int8      the same with its products in 8 bits, outliers smoothed, behind the gate of its task

    embed       the mean cosine of each sentence's vector with float32's, and Spearman's rank correlation of the
                similarities of all pairs of sentences
    classify    the share of sentences that get float32's label
    fill-mask   perplexity of float32's likeliest tokens, and the share of the likeliest that are the same
"""

import copy
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from tokenizers import Tokenizer
from torch import nn

from isoformer.export import golden, padding_free, quantize
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, Progress, torch_runner
from isoformer.export.graph import to_onnx
from isoformer.export.smooth import smooth
from isoformer.export.tolerances import grid_cases, tolerances
from isoformer.export.variants import GATES, TEXT, Made, Run, Score, described, file_of, keep
from isoformer.models.signature import Signature
from isoformer.runtime import padding
from isoformer.runtime.cases import Arrays
from isoformer.runtime.package import MODEL, VARIANTS, WEIGHTS, Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import Comparison, comparable, compare, sample_indices
from isoformer.runtime.session import Session

PRECISION = "int8"
TASKS = ("embed", "classify", "fill-mask")
MOST_TEXTS = 1024


@dataclass(frozen=True)
class Limits:
    """The least mean cosine, Spearman's correlation, and share of sentences with the same label."""

    cosine: float
    spearman: float
    labels: float


LIMITS = {"int8": Limits(0.998, 0.997, 0.99), "float16": Limits(0.9999, 0.9999, 0.99)}


def padding_free_form(graph: ir.Model) -> tuple[ir.Model, list[str]] | None:
    """The padding-free form of a copy of the graph, and its outputs that are 0 at padding; None where there is none."""
    changed = graph.clone()
    try:
        return changed, padding_free.apply(changed)
    except ExportError:
        return None


def refuse(task: dict[str, Any] | None, precision: str) -> None:
    """Raises ExportError unless the precision is one of encoders, and the task has a measure of quality."""
    if precision not in LIMITS:
        raise ExportError(f"precision {precision} is for decoders alone; this model has float32 and {PRECISION}")
    kind = (task or {}).get("name")
    if kind not in TASKS:
        raise ExportError(f"precision {precision} needs a task whose quality can be measured; {kind} has no measure")


def make(
    folder: Path,
    model: nn.Module,
    signature: Signature,
    opset: int,
    task: dict[str, Any] | None,
    precision: str,
    text: str | None,
    evidence: Evidence,
    progress: Progress,
) -> Made:
    """Writes the variants of the encoder at `folder`, whose canonical graph is there, below variants/.

    precision: float32 alone, or int8 as well. text: sentences of the gate, or the text that comes with isoformer.
    A model without a padding-free form keeps its canonical graph. Raises ExportError when int8 misses its gate.
    """
    made = Made()
    plain = RuntimeSignature.read(signature.to_dict())

    def open_(name: str | None, entry: dict[str, Any] | None = None) -> Session:
        manifest = {"task": task} | ({"variants": {name: entry}} if entry else {})
        return Session(Package(folder, manifest, plain), variant=name)

    _keep_padding_free(made, folder, open_, evidence)
    if precision == "float32":
        return made
    texts = gate_sentences(folder, plain, text, PRECISION)
    exact = open_("cpu-float32", made.variants["cpu-float32"]) if made.variants else open_(None)
    name = f"cpu-{PRECISION}"
    progress(name, 0, 2)
    graph = to_onnx(smoothed(model, signature, plain, texts), signature, opset)
    found = padding_free_form(graph) if made.variants else None
    graph, zero = found or (graph, [])
    if not quantize.int8(graph):
        raise ExportError(f"there is no product in this graph that {PRECISION} is for")
    entry = described(PRECISION, "none") | {"zero_at_padding": zero}
    # Beside the graph, where ONNX Runtime maps it: weights within the file are copied while it opens.
    ir.save(graph, file_of(folder, entry), external_data=WEIGHTS)
    low = open_(name, entry)
    progress(name, 1, 2)
    entry["gate"] = gate(task or {}, plain, exact.run, low.run, texts, PRECISION)
    entry["tolerances"] = tolerances(low, evidence, zero)
    if zero:
        entry |= golden_records(
            zero, evidence, {output: one["absolute"] for output, one in entry["tolerances"].items()}
        )
    keep(made, folder, name, entry, [])
    progress(name, 2, 2)
    return made


def _keep_padding_free(made: Made, folder: Path, open_: Callable[..., Session], evidence: Evidence) -> None:
    """The padding-free graph, if there is one and it computes the same on the whole grid."""
    found = padding_free_form(ir.load(folder / f"{MODEL}.onnx"))
    if found is None:
        return
    graph, zero = found
    entry = described("float32", "none") | {"zero_at_padding": zero, "tolerances": evidence.tolerances}
    path = file_of(folder, entry)
    ir.save(graph, path)
    comparisons = list(compared("onnxruntime cpu-float32", open_("cpu-float32", entry), zero, evidence))
    wrong = next((comparison for comparison in comparisons if not comparison.passed), None)
    if wrong is not None:
        shutil.rmtree(path.parent.parent)
        made.notes.append(f"no padding-free graph, since padding changes what the model answers: {wrong.line()}")
        return
    keep(made, folder, "cpu-float32", entry, [])
    made.comparisons += comparisons
    if zero:
        _write_golden(folder, open_(None).signature, zero, evidence)
        entry |= golden_records(zero, evidence)


def _write_golden(folder: Path, signature: RuntimeSignature, zero: Sequence[str], evidence: Evidence) -> None:
    """The golden vectors of the padding-free graphs, which both share: the canonical ones with 0 at padding."""
    for number, (inputs, outputs) in enumerate(evidence.golden.values()):
        target = folder / VARIANTS / f"test_data_set_{number}"
        golden.save(target, "input", signature.inputs, inputs)
        golden.save(target, "output", signature.outputs, padding.without(signature, zero, inputs, outputs))


def golden_records(zero: Sequence[str], evidence: Evidence, allowed: dict[str, float] | None = None) -> dict[str, Any]:
    """The variant's records of its golden vectors, with the canonical graph's bounds unless it is allowed others."""
    found = {}
    for number, case in enumerate(evidence.golden):
        recorded = evidence.records[case]
        found[f"{VARIANTS}/test_data_set_{number}"] = {
            output: record | ({} if allowed is None else {"bound": allowed[output]})
            for output, record in recorded.items()
        }
    cases = dict(zip(found, evidence.golden, strict=True))
    return {"zero_at_padding": list(zero), "golden": found, "golden_cases": cases}


def compared(
    runtime: str,
    session: Session,
    zero: Sequence[str],
    evidence: Evidence,
    allowed: Mapping[str, Mapping[str, float]] | None = None,
) -> Iterator[Comparison]:
    """A variant beside the float64 reference: the kept values of every case, within the canonical graph's bounds.

    allowed: its own tolerances, which are the bounds then.
    """
    signature = session.signature
    for case, inputs, expected in grid_cases(signature, evidence):
        outputs = comparable(signature, session.run(inputs))
        for name, reference in padding.without(signature, zero, inputs, expected).items():
            value = outputs[name]
            if value.shape != reference.shape:
                finite = np.isfinite(value).all()
                value = value.reshape(-1)[sample_indices(value.size)] if finite else np.full_like(reference, np.nan)
            bound = evidence.grid[case][name]["bound"] if allowed is None else allowed[name]["absolute"]
            yield compare(runtime, "grid", case, name, value, reference, bound)


def gate(
    task: dict[str, Any],
    signature: RuntimeSignature,
    exact: Run,
    low: Run,
    texts: Sequence[Sequence[int]],
    precision: str,
) -> dict[str, Any]:
    """The candidate's answers to the texts beside float32's, for the manifest; ExportError when it misses a limit.

    exact, low: arrays by name in and out.
    """
    limits = LIMITS[precision]
    answers = [(exact(inputs), low(inputs)) for inputs in (_inputs(signature, ids, precision) for ids in texts)]
    if task.get("name") == "embed":
        one, other = (np.concatenate([pair[i]["sentence_embedding"] for pair in answers]) for i in (0, 1))
        return _checked_embeddings(one.astype(np.float64), other.astype(np.float64), limits)
    logits = [(one["logits"][0], other["logits"][0]) for one, other in answers]
    if not all(np.isfinite(own).all() for _, own in logits):
        raise ExportError(
            f"the quality gate is missed: an answer in {precision} is infinite or NaN; export it without this precision"
        )
    if task.get("name") == "classify":
        same = [np.array_equal(_labels(task, one), _labels(task, other)) for one, other in logits]
        found = {"texts": len(same), "same_labels": float(np.mean(same)), "limits": {"same_labels": limits.labels}}
        if not found["same_labels"] >= limits.labels:
            raise ExportError(
                f"the quality gate is missed: {found['same_labels']:.3f} of the texts get float32's label (at least "
                f"{limits.labels}); export it without this precision"
            )
        return found
    score = Score()
    for one, other in logits:
        score.add(one, other, one.argmax(-1).tolist())
    return score.checked(GATES[precision])


def _labels(task: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """The likeliest label, or of a task with several labels those that are likelier than not."""
    return logits > 0 if task.get("problem") == "multi_label" else logits.argmax(-1)


def _checked_embeddings(exact: np.ndarray, low: np.ndarray, limits: Limits) -> dict[str, Any]:
    exact, low = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (exact, low))
    pairs = np.triu_indices(len(exact), 1)
    ranks = [np.argsort(np.argsort((x @ x.T)[pairs])) for x in (exact, low)]
    found = {
        "texts": len(exact),
        "cosine": float((exact * low).sum(1).mean()),
        "spearman": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "limits": {"cosine": limits.cosine, "spearman": limits.spearman},
    }
    if not found["cosine"] >= limits.cosine or not found["spearman"] >= limits.spearman:
        raise ExportError(
            f"the quality gate is missed: the mean cosine with float32's vectors is {found['cosine']:.4f} (at least "
            f"{limits.cosine}), Spearman's correlation of their similarities {found['spearman']:.4f} (at least "
            f"{limits.spearman}); "
            "export it without this precision"
        )
    return found


def smoothed(
    model: nn.Module, signature: Signature, plain: RuntimeSignature, texts: Sequence[Sequence[int]]
) -> nn.Module:
    """A copy of the model after `smooth`, over the texts."""
    model = copy.deepcopy(model)
    run = torch_runner(model, signature, torch.float32, copied=False)
    smooth(model, lambda: [run(_inputs(plain, ids)) for ids in texts[:64]])
    return model


def gate_sentences(folder: Path, signature: RuntimeSignature, text: str | None, precision: str) -> list[list[int]]:
    """The tokens of each sentence; without a tokenizer in the folder its bytes stand for tokens.

    Raises ExportError for fewer than four, whose similarities would have no order to speak of.
    """
    lines = (TEXT.read_text(encoding="utf-8") if text is None else text).splitlines()
    sentences = [one for line in lines for one in re.split(r"(?<=[.!?])\s+", line) if one.strip()][:MOST_TEXTS]
    ids = next((spec for spec in signature.inputs if spec.name == "input_ids"), None)
    if ids is None:
        raise ExportError(f"precision {precision} is measured on texts, and this model takes none")
    limit, file = signature.axes[str(ids.axes[1])][1], folder / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        found = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    else:
        found = [[byte % (ids.high or 256) for byte in one.encode()] for one in sentences]
    found = [tokens[:limit] for tokens in found if tokens]
    if len(found) < 4:
        raise ExportError(f"the text of the quality gate has {len(found)} sentences; it needs 4 at least")
    return found


def _inputs(signature: RuntimeSignature, ids: Sequence[int], precision: str = PRECISION) -> Arrays:
    """The inputs of one text without padding. Raises ExportError for a model that wants more than a text."""
    arrays: Arrays = {}
    for spec in signature.inputs:
        shape = (1, *(axis if isinstance(axis, int) else len(ids) for axis in spec.axes[1:]))
        if spec.name == "input_ids":
            arrays[spec.name] = np.array([ids])
        elif spec.kind == "lengths":
            arrays[spec.name] = np.array([len(ids)], spec.dtype)
        elif spec.masks or spec.default is not None:
            arrays[spec.name] = np.full(shape, 1 if spec.masks else spec.default, spec.dtype)
        else:
            raise ExportError(f"precision {precision} is measured on texts, and this model wants {spec.name} as well")
    return arrays
