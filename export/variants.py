"""The other graphs of a decoder: a cache written in place, and 8 or 4 bits. Each is measured before it is kept.

cpu-float32   the canonical graph with GroupQueryAttention on one cache; its weights are the canonical graph's file
cpu-int8      weights and activations in 8 bits, outliers smoothed; if asked for, `reproducible`
cpu-int4      weights in 4 bits, for few tokens at a time
              both, if asked for, with keys and values in 8 bits, see `int8_cache`

Held to the float64 reference step by step (`isoformer.runtime.decoding`): float32 within the bound that the canonical
graph has, a lower precision within twice the error of its own whole pass, with a cache in 8 bits also of the same graph
whose cache of float32 is rounded by numpy, if that is more (a whole pass reads none of those 8 bits). A lower precision
must besides pass its gate, on a text: the perplexity may be so many times float32's, and so many of the likeliest
tokens are the same. Where steps are computed otherwise than a prompt, it is passed token by token as well.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from isoformer.export import (
    attention_scale,
    golden,
    gptq,
    int8_cache,
    quantize,
    reproducible,
    residual_norm,
    shared_cache,
)
from isoformer.export.edit import loaded
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, Progress, torch_runner
from isoformer.export.graph import to_onnx
from isoformer.export.smooth import smooth
from isoformer.export.tolerances import tolerances
from isoformer.models.signature import Signature
from isoformer.runtime import decoding
from isoformer.runtime.binding import Decoder
from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.onnx_file import operators
from isoformer.runtime.package import MODEL, VARIANTS, WEIGHTS, Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import Comparison, bound, largest_error, sample_indices
from isoformer.runtime.session import Session

Run = Callable[[Arrays], Arrays]
Way = Callable[[ir.Model], int]  # puts the products of a graph into a lower precision; returns how many
TEXT = Path(__file__).with_name("text.txt")
WINDOW = 512


@dataclass(frozen=True)
class Gate:
    """perplexity: at most so many times float32's. agreement: at least this share of the likeliest tokens the same."""

    perplexity: float
    agreement: float


GATES = {"int8": Gate(1.03, 0.85), "int4": Gate(1.12, 0.85), "float16": Gate(1.005, 0.98)}
PRECISIONS = ("float32", "int8", "int4")
REPRODUCIBLE = "int8"
CACHES = ("float32", int8_cache.DTYPE)


@dataclass(frozen=True)
class Wanted:
    """precision: float32 alone, or int8 or int4 as well. windows: of the gate's text, see `windows`.

    reproducible: of int8, the same bits natively and in WebAssembly, see `reproducible`. cache: what int8 or int4 keeps
    keys and values in, one of CACHES, see `int8_cache`.
    """

    precision: str = "float32"
    windows: list[list[int]] = field(default_factory=list)
    reproducible: bool = False
    cache: str = CACHES[0]


@dataclass
class Made:
    """What goes into the manifest, the comparisons of the canonical graph, and arrays for decoding.npz."""

    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    decoding: dict[str, dict[str, float]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make(
    folder: Path,
    model: nn.Module,
    signature: Signature,
    opset: int,
    wanted: Wanted,
    evidence: Evidence,
    progress: Progress,
) -> Made:
    """Writes the variants of the decoder at `folder`, whose canonical graph is there, below variants/.

    evidence: of the canonical graph, to whose cases a variant with such a cache is held as well.
    Raises ExportError when a variant misses its bound or its gate.
    """
    made, precision, windows = Made(), wanted.precision, wanted.windows
    runs = [torch_runner(model, signature, dtype) for dtype in (torch.float64, torch.float32)]
    references = _references(made, runs, signature, progress)
    plain = RuntimeSignature.read(signature.to_dict())

    def open_(name: str | None, entry: dict[str, Any] | None = None) -> Session:
        manifest = {"variants": {name: entry}} if entry is not None else {}
        return Session(Package(folder, manifest, plain), variant=name)

    canonical = Decoder(open_(None))
    for case, sampled in references:
        allowed = made.decoding[case.name]["bound"]
        made.comparisons.append(decoding.compared("onnxruntime cpu", canonical, case, sampled, allowed))
    if not references:
        made.notes.append("no variants: a model of so few positions makes no steps that they could be held to")
    if not references or not all(comparison.passed for comparison in made.comparisons):
        return made

    entry = described("float32", "shared")
    graph = ir.load(folder / "model.onnx")
    path = file_of(folder, entry)
    try:
        attention_scale.into_queries(graph, folded=False)
        shared_cache.apply(graph, signature.windows, max_positions(signature), for_steps=True)
        residual_norm.apply(graph)
        ir.save(graph, path)
        session = open_("cpu-float32", entry)
        Decoder(session).start([[0]])  # the operator says only when it runs what it does not take
    except IsoformerError as error:
        path.unlink(missing_ok=True)
        made.notes.append(f"no cache written in place: {error}")
        if wanted.cache == int8_cache.DTYPE:
            raise ExportError(f"--cache {wanted.cache} is for a cache written in place: {error}") from None
        session = open_(None)
    else:
        found = list(steps(Decoder(session), references, made.decoding, progress, "cpu-float32"))
        keep(made, folder, "cpu-float32", entry, found)
        keep_golden(made, folder, "cpu-float32", session, runs)
    if precision == "float32":
        return made

    name, cache = f"cpu-{precision}", "shared" if made.variants and not wanted.reproducible else "plain"
    entry = described(precision, cache)
    if wanted.reproducible:
        entry["reproducible"] = True
    exact = Decoder(session)

    def written(candidate: tuple[ir.Model, Way]) -> Decoder:
        progress(name, 0, 2)
        _lower(*candidate, file_of(folder, entry), entry, signature, for_steps=wanted.cache != int8_cache.DTYPE)
        progress(name, 1, 2)
        if wanted.cache != int8_cache.DTYPE:
            return Decoder(open_(name, entry))
        found, rounded[name] = _rounded_cache(open_(name, entry), windows[0], references)
        int8_cache.apply(candidate[0], found)
        _save(candidate[0], file_of(folder, entry))
        return Decoder(open_(name, entry | {"cache_dtype": int8_cache.DTYPE}))

    rounded: dict[str, dict[str, dict[str, float]]] = {}
    graphs = _to_quantize(folder, model, signature, opset, wanted, exact, partial(_named, progress, name))

    def measured(low: Decoder) -> dict[str, Any]:
        """The gate's record. Steps must pass besides where they compute otherwise than a whole text (`head`, in 4 bits)
        or read what that does not (a cache in 8 bits); the record is then theirs.
        """
        whole = gate(exact, low, windows[1:], GATES[precision])
        if precision == "int8" and not rounded:
            return whole
        found = gate(exact, Stepwise(low), windows[1:], GATES[precision])
        return found | {"whole_text": {name: whole[name] for name in ("perplexity", "ratio", "agreement")}}

    low, entry["gate"], missed = _first_to_pass(map(written, graphs), measured)
    made.notes += [
        f"{name} has its offsets as products of their own; without them {error.partition(';')[0]}" for error in missed
    ]
    progress(name, 2, 2)
    if rounded:
        entry["cache_dtype"] = int8_cache.DTYPE
    bounds = rounded.get(name) or _own_bounds(low, references)
    keep(made, folder, name, entry, list(steps(low, references, bounds, progress, name)))
    if cache == "shared":
        keep_golden(made, folder, name, low.session, runs)
    else:
        entry["tolerances"] = tolerances(low.session, evidence)
    return made


def _to_quantize(
    folder: Path,
    model: nn.Module,
    signature: Signature,
    opset: int,
    wanted: Wanted,
    exact: Decoder,
    progress: Progress,
) -> Iterator[tuple[ir.Model, Way]]:
    """The graphs that a precision can begin with, the faster first; the next one is for when it misses the gate.

    Activations in 8 bits want their outliers smoothed; weights in 4 bits are faster with whole zero points.
    """
    if wanted.precision == "int8":
        yield _smoothed(model, signature, opset, wanted.windows[0]), quantize.int8
        return
    yield _rounded(model, signature, opset, wanted.windows[0], exact, progress)
    yield loaded(folder / f"{MODEL}.onnx"), quantize.int4


def _first_to_pass(
    candidates: Iterable[Decoder], measure: Callable[[Decoder], dict[str, Any]]
) -> tuple[Decoder, dict[str, Any], list[str]]:
    """The first that the gate lets through, what the gate found, and what it said of those before; or its last word."""
    missed: list[str] = []
    for candidate in candidates:
        try:
            return candidate, measure(candidate), missed
        except ExportError as error:
            missed.append(str(error))
        del candidate  # it holds the file that is written next
    raise ExportError(missed[-1])


def _lower(
    graph: ir.Model, way: Way, path: Path, entry: dict[str, Any], signature: Signature, *, for_steps: bool
) -> None:
    """Writes the graph at `path` in the precision and with the cache that `entry` names.

    for_steps: as of `shared_cache`; a cache in 8 bits reads long prompts whole.
    """
    if entry["cache"] == "shared":
        if for_steps:
            attention_scale.into_queries(graph, folded=True)
        shared_cache.apply(graph, signature.windows, max_positions(signature), for_steps=for_steps)
    if not way(graph):
        raise ExportError(f"there is no product in this graph that {entry['precision']} is for")
    if entry.get("reproducible"):
        reproducible.apply(graph, max_positions(signature))
    else:
        residual_norm.apply(graph)
    _save(graph, path)


def _save(graph: ir.Model, path: Path) -> None:
    # Beside the graph, where ONNX Runtime maps it: weights within the file are held three times while it opens.
    path.with_name(WEIGHTS).unlink(missing_ok=True)
    ir.save(graph, path, external_data=WEIGHTS)


class Scorer(Protocol):
    """Whatever gives the logits (length, vocabulary) behind every token of each sequence, as `Decoder` does."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]: ...


class Stepwise:
    """A decoder's logits as generation asks for them: each token a step, behind the cache of those before."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.concatenate(list(self._steps(sequence))) for sequence in sequences]

    def _steps(self, sequence: Sequence[int]) -> Iterator[np.ndarray]:
        yield self.decoder.start([sequence[:1]])[0]
        for token in sequence[1:]:
            yield self.decoder.append([[token]])


def gate(reference: Scorer, candidate: Scorer, windows: Sequence[Sequence[int]], limits: Gate) -> dict[str, Any]:
    """The candidate's perplexity beside the reference's, for the manifest; ExportError when it misses a limit."""
    score = Score()
    for window in windows:
        (exact,), (low,) = reference.score([window]), candidate.score([window])
        score.add(exact[:-1], low[:-1], window[1:])
    return score.checked(limits)


class Score:
    """How likely some tokens are to float32 and to a candidate, and how often both find the same token likeliest."""

    def __init__(self) -> None:
        self.sums, self.same, self.count = np.zeros(2), 0, 0

    def add(self, exact: np.ndarray, low: np.ndarray, tokens: Sequence[int]) -> None:
        """Logits (length, vocabulary) of both, and the tokens that they are about."""
        self.sums += _surprise(exact, tokens), _surprise(low, tokens)
        self.same += int((exact.argmax(-1) == low.argmax(-1)).sum())
        self.count += len(tokens)

    def checked(self, limits: Gate) -> dict[str, Any]:
        """For the manifest; ExportError when it misses a limit."""
        if not self.count:
            raise ExportError("the quality gate has nothing to measure: its sample is empty")
        means = self.sums / self.count
        float32, own, ratio = (_exp(mean) for mean in (*means, means[1] - means[0]))
        found = {
            "tokens": self.count,
            "perplexity": own,
            "perplexity_float32": float32,
            "ratio": ratio,
            "agreement": self.same / self.count,
            "limits": asdict(limits),
        }
        if not found["ratio"] <= limits.perplexity or not found["agreement"] >= limits.agreement:
            raise ExportError(
                f"the quality gate is missed: perplexity {own:.2f} is {found['ratio']:.3f} times float32's "
                f"{float32:.2f} (at most {limits.perplexity}), {found['agreement']:.3f} of the likeliest tokens are "
                f"the same (at least {limits.agreement}); export it without this precision"
            )
        return found


def _exp(x: float) -> float:
    """e^x, infinite where float64 ends."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def _surprise(logits: np.ndarray, tokens: Sequence[int]) -> float:
    """The sum of -log p of the tokens."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return float((np.log(np.exp(wide).sum(-1)) - wide[np.arange(len(tokens)), list(tokens)]).sum())


def _references(
    made: Made, runs: Sequence[Run], signature: Signature, progress: Progress
) -> list[tuple[decoding.Case, np.ndarray]]:
    """The cases with sampled float64 logits; fills in the bounds of float32 and the arrays to keep.

    runs: the model in float64 and in float32.
    """
    found = []
    todo = decoding.cases(max_positions(signature))
    for number, case in enumerate(todo):
        progress("decoding", number, len(todo))
        rows = list(zip(case.sequences(_vocabulary(signature)), case.asked(), strict=True))
        exact, rounded = (np.stack(golden.logits_alone(signature, run, rows)) for run in runs)
        error = largest_error(rounded, exact)
        made.decoding[case.name] = {"torch_error": error, "bound": bound(error, exact)}
        made.arrays[case.name] = exact.reshape(-1)[sample_indices(exact.size)]
        found.append((case, made.arrays[case.name]))
    progress("decoding", len(todo), len(todo))
    return found


def _own_bounds(decoder: Decoder, references: list[tuple[decoding.Case, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Twice the largest error of the decoder's own whole pass, over all cases: what steps may err as well.

    A pass that asks for one row of logits counts too, since `head` computes that otherwise than several.
    """
    worst = 0.0
    for case, sampled in references:
        rows = list(zip(case.sequences(decoder.vocab_size or 1), case.asked(), strict=True))
        whole = np.stack([decoder.score([row])[0][asked] for row, asked in rows])
        alone = np.stack([[_alone(decoder, row[: place + 1]) for place in asked] for row, asked in rows])
        for logits in (whole, alone):
            worst = max(worst, largest_error(logits.reshape(-1)[sample_indices(logits.size)], sampled))
    return {case.name: {"whole_pass_error": worst, "bound": 2 * worst} for case, _ in references}


def _alone(decoder: Decoder, tokens: Sequence[int]) -> np.ndarray:
    """The logits (vocabulary,) behind the last token, by one pass over all of them."""
    decoder.forget()
    return decoder.start([tokens])[0][0]


def _rounded_cache(
    session: Session, tokens: Sequence[int], references: list[tuple[decoding.Case, np.ndarray]]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The steps that a cache in 8 bits gets by a text, and the bounds of a graph that has it.

    session: of the same graph while its cache is float32, which numpy rounds: twice the largest error so, or of its
    whole pass if that is larger, is what the graph may err as well.
    """
    bounds = _own_bounds(Decoder(session), references)
    found = int8_cache.steps(Decoder(session), tokens)
    decoder, worst = int8_cache.Rounded(session, found), 0.0
    for case, sampled in references:
        logits = decoding.replay(decoder, case, case.sequences(decoder.vocab_size or 1))
        worst = max(worst, largest_error(logits.reshape(-1)[sample_indices(logits.size)], sampled))
    for record in bounds.values():
        record |= {"rounded_cache_error": worst, "bound": max(record["bound"], 2 * worst)}
    return found, bounds


def steps(
    decoder: Decoder,
    references: list[tuple[decoding.Case, np.ndarray]],
    bounds: dict[str, dict[str, float]],
    progress: Progress,
    name: str,
) -> Iterator[tuple[Comparison, dict[str, float]]]:
    """Each case's comparison and its record for the manifest; ExportError for the first that misses its bound."""
    for number, (case, sampled) in enumerate(references):
        progress(f"{name} steps", number + 1, len(references))
        found = decoding.compared(name, decoder, case, sampled, bounds[case.name]["bound"])
        if not found.passed:
            raise ExportError(f"the variant does not compute the same: {found.line()}")
        yield found, bounds[case.name] | {"error": found.error}


def keep(
    made: Made, folder: Path, name: str, entry: dict[str, Any], found: list[tuple[Comparison, dict[str, float]]]
) -> None:
    entry["decoding"] = {comparison.case: record for comparison, record in found}
    entry["operators"] = dict(sorted(operators(file_of(folder, entry)).items()))
    made.variants[name] = entry


def keep_golden(
    made: Made, folder: Path, name: str, session: Session, runs: Sequence[Run], allowed: float | None = None
) -> None:
    """Writes the golden vectors of graphs with a shared cache, and a bound for each.

    A variant in 8 or 4 bits has vectors of its own, whose past is what its own cache holds: smoothing moves the scale
    of values, and 8 bits have steps. One whose cache is float16 has its own as well. Of float32 the bound is the
    largest of its steps and of these cases; of a lower precision it is twice the largest error, of its whole pass and
    of these cases, if `allowed` does not say it.
    """
    signature, entry = session.signature, made.variants[name]
    errors, wide, shapes = [], [], {}
    lower = entry["precision"] in GATES and entry["precision"] != "float16"
    place = f"{VARIANTS}/{name}" if lower or "cache_dtype" in entry else VARIANTS
    held = _held(Decoder(session)) if lower else None
    found = zip(*(golden.cached(signature, run, held) for run in runs), strict=True)
    for number, (exact, rounded) in enumerate(found):
        case, inputs, logits = exact
        target = f"{place}/test_data_set_{number}"
        golden.save(folder / target, "input", signature.inputs, inputs)
        golden.save(folder / target, "output", signature.outputs, {"logits": logits.astype(np.float32)})
        shapes[target] = case.name, list(logits.shape)
        errors.append(largest_error(decoding.plainly(session)(inputs)["logits"], logits))
        wide.append(bound(largest_error(rounded[2], logits), logits))
    bounds = [record["bound"] for record in entry["decoding"].values()]
    if allowed is None:
        own = wide if entry["precision"] == "float32" else [2 * error for error in errors]
        allowed = max(*bounds, *own)
    if errors and not max(errors) <= allowed:
        raise ExportError(f"the variant {name} is off by {max(errors):.2e} in its golden vectors, over {allowed:.2e}")
    entry["golden"] = {target: {"logits": {"shape": shape, "bound": allowed}} for target, (_, shape) in shapes.items()}
    entry["golden_cases"] = {target: case for target, (case, _) in shapes.items()}


def _held(decoder: Decoder) -> Callable[[list[int]], Arrays]:
    """What the decoder's own cache holds of a prompt, in its own scales."""

    def run(tokens: list[int]) -> Arrays:
        decoder.score([tokens])
        return decoder.held()

    return run


def described(precision: str, cache: str, graph: str = MODEL, provider: str = "cpu") -> dict[str, Any]:
    """What the manifest says of a variant before it is measured."""
    path = f"{VARIANTS}/{provider}-{precision}/{graph}.onnx"
    return {"path": path, "provider": provider, "precision": precision, "cache": cache}


def file_of(folder: Path, entry: dict[str, Any]) -> Path:
    """The variant's file, whose folder is made."""
    path = folder / entry["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _smoothed(model: nn.Module, signature: Signature, opset: int, tokens: Sequence[int]) -> ir.Model:
    """The graph of the model after `smooth`, over one window of text."""
    model = copy.deepcopy(model)
    run = torch_runner(model, signature, torch.float32, copied=False)
    smooth(model, lambda: run(golden.alone(signature, list(tokens), [len(tokens) - 1])))
    return to_onnx(model, signature, opset)


def _rounded(
    model: nn.Module, signature: Signature, opset: int, first: list[int], exact: Decoder, progress: Progress
) -> tuple[ir.Model, Way]:
    """The graph of the model after `gptq`, over a text that it writes itself, and how it gets its 4 bits."""
    tokens = gptq.written(exact, first, partial(progress, "text"))
    model = copy.deepcopy(model)
    run = torch_runner(model, signature, torch.float32, copied=False)
    inputs = {name: np.repeat(array, len(tokens), 0) for name, array in golden.alone(signature, [0], [0]).items()}
    inputs["input_ids"], inputs["attention_mask"] = tokens, np.ones_like(tokens)
    inputs["position_ids"] = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    coarse = gptq.round_blocks(model, lambda: run(inputs), partial(progress, "rounding"))
    return to_onnx(model, signature, opset), partial(quantize.int4, offsets=False, coarse=coarse)


def _named(progress: Progress, name: str, stage: str, done: int, total: int) -> None:
    progress(f"{name} {stage}", done, total)


def windows(folder: Path, signature: Signature, text: str | None) -> list[list[int]]:
    """The gate's text, or the one that comes with isoformer, in windows of up to 512 tokens, at least two.

    Without a tokenizer in the folder its bytes stand for tokens. Raises ExportError for a text that is too short.
    """
    vocabulary, limit = _vocabulary(signature), max_positions(signature)
    text = TEXT.read_text(encoding="utf-8") if text is None else text
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    else:
        tokens = [byte % vocabulary for byte in text.encode()[: 4 * WINDOW]]
    size = min(WINDOW, limit - 1)
    found = [tokens[at : at + size] for at in range(0, len(tokens) - 1, size)]
    found = [window for window in found if len(window) > 1]
    if len(found) < 2:
        raise ExportError(f"the text of the quality gate has {len(tokens)} tokens; it needs more than {size + 1}")
    return found


def max_positions(signature: Signature) -> int:
    return next(spec.high or 0 for spec in signature.inputs if spec.name == "position_ids")


def _vocabulary(signature: Signature) -> int:
    return next(spec.high or 0 for spec in signature.inputs if spec.name == "input_ids")
