"""translate: a text goes in, another comes out, in another language or in other words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime.binding import CrossDecoder
from isoformer.runtime.errors import InputError
from isoformer.runtime.generation import BATCH_SIZE, Settings, Stats, stream
from isoformer.runtime.sampling import Processor, force, suppress
from isoformer.runtime.session import Graphs, Session
from isoformer.runtime.text import text_encoder

if TYPE_CHECKING:
    from rich.console import Console

ENCODER, DECODER = "encoder_model", "decoder_model_merged"


def run(
    graphs: Graphs,
    texts: Sequence[str],
    *,
    settings: Settings | None = None,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
    stats: Stats | None = None,
) -> list[dict[str, Any]]:
    """[{"input": text, "text": the answer, "token_ids": its tokens}, …]

    Texts of like length share a batch; a beam search takes one at a time. settings: where they have no eos and no
    max_tokens of their own, the package's. Raises InputError for an empty text and for one that is too long.
    """
    task, encoder = graphs.package.task, text_encoder(graphs[ENCODER], truncate=truncate)
    for text in texts:
        if not text.strip():
            raise InputError("a text is empty; give at least one word")
    encodings = encoder.encode(texts)
    settings = with_package(task, settings)
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
    size = BATCH_SIZE if settings.beams == 1 else 1
    decoder, found = CrossDecoder(graphs[DECODER]), dict[int, list[int]]()
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        arrays = encoder.inputs([encodings[i] for i in chosen])
        decoder.condition(known(graphs, arrays, arrays["attention_mask"]))
        prompts: dict[int, Sequence[int]] = {number: task["decoder_start"] for number in chosen}  # noqa: C420  as its type says
        for number, token in stream(decoder, prompts, settings, stats=stats):
            found.setdefault(number, []).append(token)
        progress(len(chosen))
    return [
        {"input": text, "text": encoder.tokenizer.decode(found[number]), "token_ids": found[number]}
        for number, text in enumerate(texts)
    ]


def known(graphs: Mapping[str, Session], inputs: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """What the decoder reads of the encoder's inputs, as `CrossDecoder.condition` takes it; mask: of its keys."""
    names = [spec.name for spec in graphs[ENCODER].signature.outputs if spec.name.startswith("present.")]
    outputs = graphs[ENCODER].run(inputs, names)
    made = {f"past_key_values.{name.removeprefix('present.')}": value for name, value in outputs.items()}
    return made | {"encoder_attention_mask": mask}


def with_package(task: dict[str, Any], settings: Settings | None) -> Settings:
    """The settings with what the package says of how an answer begins and ends, unless they say it themselves."""
    settings = settings or Settings(max_tokens=task["max_length"])
    length = min(settings.max_tokens, task["max_length"] - len(task["decoder_start"]))
    return replace(
        settings,
        max_tokens=length,
        eos=settings.eos or tuple(task["eos"]),
        processors=(*processors(task, length), *settings.processors),
    )


def processors(task: dict[str, Any], length: int) -> list[Processor]:
    """Tokens that never come, and those that must come first, or last of `length`."""
    start = len(task["decoder_start"])
    made = [suppress(task["suppressed"])] if task["suppressed"] else []
    for token, place in ((task["forced_bos"], start), (task["forced_eos"], start + length - 1)):
        if token is not None:
            made.append(force(token, place))
    return made


def show(results: Sequence[dict[str, Any]], console: "Console") -> None:
    """The answers, a line each."""
    for result in results:
        console.print(result["text"], soft_wrap=True, highlight=False, markup=False)
