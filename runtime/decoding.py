"""Decoders step by step: prompts of several lengths, then new tokens, each step against the reference's whole pass.

A package carries the tokens of each case and the logits of the float64 reference (decoding.npz), so that every
graph of it, the canonical one and the variants, can be held to them without torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from isoformer.runtime import npz
from isoformer.runtime.binding import Decoder
from isoformer.runtime.cases import Arrays
from isoformer.runtime.errors import IsoformerError, PackageError
from isoformer.runtime.package import MANIFEST, Package
from isoformer.runtime.parity import Comparison, compare, sample_indices
from isoformer.runtime.session import Session, first_line

FILE = "decoding.npz"


@dataclass(frozen=True)
class Case:
    """prompts: the length of each sequence's prompt. steps: how many tokens each sequence gets, step by step."""

    prompts: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{'+'.join(map(str, self.prompts))}, {' '.join(map(str, self.steps))}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the whole sequences."""
        return tuple(prompt + sum(self.steps) for prompt in self.prompts)

    def sequences(self, vocab_size: int) -> list[list[int]]:
        rng = np.random.default_rng(len(self.prompts) * 1000 + self.prompts[0])
        return [rng.integers(0, vocab_size, length).tolist() for length in self.lengths]

    def asked(self) -> list[list[int]]:
        """For each sequence the places whose logits are compared: the prompt's last and the last of each step."""
        ends = np.cumsum([0, *self.steps])
        return [[prompt - 1 + int(end) for end in ends] for prompt in self.prompts]


CASES = (
    Case((1,), (1, 1, 1)),
    Case((5, 1, 17), (1, 1, 1, 1)),
    Case((33,), (1, 1, 7, 1, 30, 1)),
    Case((250,), (3, 1, 5, 1)),  # over the first capacity of a cache that is written in place
    Case((40, 40), (1, 6, 1)),
    Case((300, 7), (1, 1)),  # over a piece of a prompt, which a cache that is written in place gets in pieces
)
SINCE = CASES[5:]  # those that packages may be older than


def cases(limit: int | None) -> list[Case]:
    """Those that a model of so many positions takes."""
    return [case for case in CASES if limit is None or max(case.lengths) < limit]


def replay(decoder: Decoder, case: Case, sequences: list[list[int]]) -> np.ndarray:
    """The logits (B, 1 + steps, vocabulary) behind the prompts and behind each step."""
    logits, _ = decoder.start([row[:prompt] for row, prompt in zip(sequences, case.prompts, strict=True)])
    found, done = [logits], np.array(case.prompts)
    for width in case.steps:
        found.append(decoder.append([row[at : at + width] for row, at in zip(sequences, done, strict=True)]))
        done = done + width
    return np.stack(found, axis=1)


def compared(runtime: str, decoder: Decoder, case: Case, sampled: np.ndarray, allowed: float) -> Comparison:
    """The case through the decoder, against sampled values of the reference."""
    try:
        logits = replay(decoder, case, case.sequences(decoder.vocab_size or 1))
    except IsoformerError as error:
        return Comparison(runtime, "decoding", case.name, "logits", 0, float("inf"), allowed, str(error))
    values = logits.reshape(-1)[sample_indices(logits.size)] if np.isfinite(logits).all() else sampled * np.nan
    return compare(runtime, "decoding", case.name, "logits", values, sampled, allowed)


def plainly(session: Session) -> Callable[[Arrays], Arrays]:
    """Runs a graph that writes its cache in place as any other: what it writes goes elsewhere.

    Vectors whose cache is float32 become what it is here, if that is a float too; 8 bits are the graph's own.
    """
    dtypes = {spec.name: np.dtype(spec.dtype) for spec in session.signature.inputs}

    def run(inputs: Arrays) -> Arrays:
        foreign = [name for name, array in inputs.items() if array.dtype.kind == "f" != dtypes[name].kind]
        if foreign:
            raise IsoformerError(f"{foreign[0]} holds floats; {session.variant} keeps them in {dtypes[foreign[0]]}")
        feeds = {name: array.astype(dtypes[name], copy=False) for name, array in inputs.items()}
        try:
            return {"logits": np.asarray(session.inference.run(["logits"], feeds)[0])}
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            raise IsoformerError(f"ONNX Runtime failed: {first_line(error)}") from error

    return run


def verify(package: Package, session: Session, runtime: str) -> Iterator[Comparison]:
    """Every case that the package carries, through the session's graph. Raises PackageError for a broken file.

    A package may be older than a case, and then carries nothing of it; of those of its time it carries all.
    """
    recorded = package.manifest["decoding"] if session.variant is None else package.variant(session.variant)["decoding"]
    decoder = Decoder(session)
    with npz.read(package.file(FILE)) as arrays:
        carried = set(arrays)
        for case in cases(decoder.limit):
            if case in SINCE and case.name not in recorded and case.name not in carried:
                continue
            if case.name not in recorded:
                raise PackageError(f"{package.path} is broken: {MANIFEST} has no bound of the decoding {case.name}")
            yield compared(runtime, decoder, case, arrays[case.name], recorded[case.name]["bound"])
