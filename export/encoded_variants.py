"""cpu-int8 of an encoder and the decoder that reads its output: products in 8 bits (`quantize`), behind one gate.

What the float32 graphs answer greedily to a sample, texts or a recording, is given to both word by word. The gate is
that of `variants`: the perplexity of those answers may be so many times float32's, and so many of the likeliest tokens
are the same. Each graph's error against the float64 reference, over the grid of the canonical graph, is measured
besides; twice the largest is what `isoformer verify` holds it to.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from isoformer.export import quantize
from isoformer.export.edit import loaded
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Progress
from isoformer.export.package import Part
from isoformer.export.tolerances import tolerances
from isoformer.export.variants import GATES, TEXT, Made, Score, described, file_of, keep
from isoformer.runtime import audio
from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.cases import Arrays
from isoformer.runtime.generation import Settings, stream
from isoformer.runtime.package import Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.session import Session
from isoformer.runtime.tasks import transcribe, translate

PRECISION = "int8"
NAME = f"cpu-{PRECISION}"
ENCODER, DECODER = translate.ENCODER, translate.DECODER
MOST_TEXTS, MOST_WINDOWS, MOST_TOKENS = 64, 16, 128

Sessions = Mapping[str, Session]


@dataclass(frozen=True)
class Question:
    """The encoder's inputs of one text or window, the mask of what it puts out, and how an answer begins."""

    inputs: Arrays
    mask: np.ndarray
    prompt: list[int]


def refuse(task: dict[str, Any] | None, names: Collection[str], precision: str, sound: Path | None) -> None:
    """Raises ExportError unless the graphs, their task and the sample are what int8 is made from here.

    A recording that cannot be read is an InputError, before the long work.
    """
    if not {ENCODER, DECODER} <= set(names):
        raise ExportError(f"precision {precision} is for models that generate; this one has float32")
    if precision != PRECISION:
        raise ExportError(f"precision {precision} is for decoders alone; this model has float32 and {PRECISION}")
    kind = (task or {}).get("name")
    if kind not in ("translate", "transcribe"):
        raise ExportError(f"precision {precision} needs a task whose quality can be measured; {kind} has no measure")
    if kind == "transcribe" and sound is None:
        raise ExportError(f"precision {precision} of transcribe needs a recording to measure its quality on: --sound")
    if kind == "translate" and sound is not None:
        raise ExportError(f"--sound {sound} is for transcribe; the quality of translate is measured on --text")
    if sound is not None:
        audio.read(sound)


def make(
    folder: Path, parts: Mapping[str, Part], task: dict[str, Any], sample: str | Path | None, progress: Progress
) -> dict[str, Made]:
    """Writes the variants of the graphs in the folder; graph → what its manifest records.

    parts: the canonical graphs as they were measured. sample: a text, a line for each input, or the file of a
    recording. Raises ExportError when the gate is missed.
    """
    plain = {name: RuntimeSignature.read(part.signature.to_dict()) for name, part in parts.items()}

    def open_(name: str, variant: dict[str, Any] | None = None) -> Session:
        manifest = {"task": task} | ({"variants": {NAME: variant}} if variant else {})
        return Session(Package(folder, manifest, plain[name], name), variant=NAME if variant else None)

    exact: Sessions = {name: open_(name) for name in parts}
    asked = list(_windows(exact, task, Path(sample)) if isinstance(sample, Path) else _texts(exact, task, sample))
    answers = [_answer(exact, task, question) for question in asked]
    progress(NAME, 0, 2)
    entries = {name: one for name in (ENCODER, DECODER) if (one := _write(folder, name)) is not None}
    if not entries:
        raise ExportError(f"there is no product in these graphs that {PRECISION} is for")
    low = {name: open_(name, entries.get(name)) for name in parts}
    progress(NAME, 1, 2)
    found = gate(exact, low, asked, answers)
    made = {name: Made() for name in entries}
    for name, one in entries.items():
        one |= {"gate": found, "tolerances": tolerances(low[name], parts[name].evidence)}
        keep(made[name], folder, NAME, one, [])
    progress(NAME, 2, 2)
    return made


def gate(exact: Sessions, low: Sessions, asked: Sequence[Question], answers: Sequence[list[int]]) -> dict[str, Any]:
    """The candidate's perplexity of the answers beside float32's, for the manifest; ExportError when it misses."""
    score = Score()
    decoders = [(sessions, CrossDecoder(sessions[DECODER])) for sessions in (exact, low)]
    for question, answer in zip(asked, answers, strict=True):
        tokens = [*question.prompt, *answer]
        one, other = (_logits(sessions, decoder, question, tokens) for sessions, decoder in decoders)
        score.add(one, other, answer)
    return score.checked(GATES[PRECISION])


def _logits(sessions: Sessions, decoder: CrossDecoder, question: Question, tokens: Sequence[int]) -> np.ndarray:
    """(answer, vocabulary): what each token of the answer was chosen from."""
    decoder.condition(translate.known(sessions, question.inputs, question.mask))
    return decoder.score([tokens[:-1]])[0][len(question.prompt) - 1 :]


def _answer(sessions: Sessions, task: dict[str, Any], question: Question) -> list[int]:
    """The greedy answer, the token that ends it among it."""
    decoder = CrossDecoder(sessions[DECODER])
    decoder.condition(translate.known(sessions, question.inputs, question.mask))
    settings = translate.with_package(task, Settings(max_tokens=MOST_TOKENS))
    if task["name"] == "transcribe":
        begin = task["timestamp_begin"] is not None
        settings = Settings(
            max_tokens=min(MOST_TOKENS, task["max_length"] - len(question.prompt)),
            eos=tuple(task["eos"]),
            processors=tuple(transcribe.processors(task, len(question.prompt), begin)),
        )
    return [token for _, token in stream(decoder, {0: question.prompt}, settings)]


def _texts(sessions: Sessions, task: dict[str, Any], text: str | None) -> Iterator[Question]:
    """A question a line, of the text that comes with isoformer unless there is another.

    Without a tokenizer in the folder its bytes stand for tokens.
    """
    lines = (TEXT.read_text(encoding="utf-8") if text is None else text).splitlines()
    session = sessions[ENCODER]
    limit, file = session.signature.axes[_length_axis(session)][1], session.package.path / "tokenizer.json"
    vocabulary = next(spec.high or 0 for spec in session.signature.inputs if spec.name == "input_ids")
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None
    for line in [line for line in lines if line.strip()][:MOST_TEXTS]:
        ids = tokenizer.encode(line).ids if tokenizer else [byte % vocabulary for byte in line.encode()]
        inputs = {"input_ids": np.array([ids[:limit]])}
        mask = np.ones_like(inputs["input_ids"])
        yield Question(inputs | {"attention_mask": mask}, mask, list(task["decoder_start"]))


def _length_axis(session: Session) -> str:
    """The name of the axis that counts the encoder's tokens."""
    return str(next(spec.axes[1] for spec in session.signature.inputs if spec.name == "input_ids"))


def _windows(sessions: Sessions, task: dict[str, Any], file: Path) -> Iterator[Question]:
    """A question a window of the recording."""
    sound, size = audio.read(file, task["sample_rate"]), task["max_frames"] * task["hop_length"]
    prompt = transcribe.Prompt(task, None, "transcribe", task["timestamp_begin"] is not None)
    decoder = CrossDecoder(sessions[DECODER])
    for begin in range(0, len(sound), size)[:MOST_WINDOWS]:
        waveform = audio.window(sound, begin, size)[None]
        features = sessions[transcribe.FEATURES].run({"waveform": waveform})["input_features"]
        mask = np.ones((1, features.shape[2] // transcribe.TICK_FRAMES), np.int64)
        inputs = {"input_features": features, "attention_mask": mask}
        decoder.condition(translate.known(sessions, inputs, mask))
        (logits,), _ = decoder.start([prompt.start])
        yield Question(inputs, mask, prompt.tokens(logits))


def _write(folder: Path, name: str) -> dict[str, Any] | None:
    """The graph in 8 bits below variants/, and its entry; None where it has no product that is worth it."""
    graph = loaded(folder / f"{name}.onnx")
    if not quantize.int8(graph):
        return None
    made = described(PRECISION, "plain", name)
    ir.save(graph, file_of(folder, made))
    return made
