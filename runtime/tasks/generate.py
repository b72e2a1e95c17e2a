"""generate: how a text goes on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isoformer.runtime.binding import Decoder
from isoformer.runtime.detokenizer import Detokenizer, eos_tokens
from isoformer.runtime.errors import InputError
from isoformer.runtime.generation import Settings, Stats, generate
from isoformer.runtime.generation import stream as stream_tokens
from isoformer.runtime.session import Session
from isoformer.runtime.text import text_encoder

if TYPE_CHECKING:
    from rich.console import Console


def run(
    session: Session,
    texts: Sequence[str],
    *,
    settings: Settings | None = None,
    stop: Sequence[str] = (),
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
    stats: Stats | None = None,
) -> list[dict[str, Any]]:
    """[{"input": text, "text": how it goes on, "token_ids": the new tokens}, …]

    stop: strings that end a text. The settings' eos, if there are none, are the package's own.
    Raises InputError for an empty text, one that leaves the model no room, and for `truncate`: the end
    of a text is what is continued.
    """
    if truncate:
        raise InputError("a text that is to be continued is not cut: leave --truncate (truncate=True) out")
    prompts = encode(session, texts)
    settings = with_eos(session, settings)
    tokenizer = text_encoder(session).tokenizer
    made = [Detokenizer(tokenizer, prompt, stop, settings.eos) for prompt in prompts]
    found = generate(
        session, prompts, settings, ends=lambda number, new: made[number].stopped(new), stats=stats, progress=progress
    )
    return [
        {"input": text, "text": detokenizer.text(new), "token_ids": new}
        for text, detokenizer, new in zip(texts, made, found, strict=True)
    ]


def stream(
    session: Session,
    text: str,
    *,
    settings: Settings | None = None,
    stop: Sequence[str] = (),
    stats: Stats | None = None,
) -> Iterator[str]:
    """What `run` gives as "text", piece by piece as tokens come. Raises as `run` does."""
    (prompt,) = encode(session, [text])
    settings = with_eos(session, settings)
    detokenizer = Detokenizer(text_encoder(session).tokenizer, prompt, stop, settings.eos)
    yield from pieces(Decoder(session), prompt, detokenizer, settings, stats, [])


def pieces(
    decoder: Decoder,
    prompt: Sequence[int],
    detokenizer: Detokenizer,
    settings: Settings,
    stats: Stats | None,
    new: list[int],
) -> Iterator[str]:
    """The text behind one prompt, piece by piece; `new` is filled with its tokens."""
    shown = 0
    for _, token in stream_tokens(
        decoder, {0: prompt}, settings, ends=lambda _number, so_far: detokenizer.stopped(so_far), stats=stats
    ):
        new.append(token)
        text = detokenizer.settled(new)
        yield text[shown:]
        shown = max(shown, len(text))
    yield detokenizer.text(new)[shown:]


def encode(session: Session, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
    """The tokens of each text. Raises InputError for a text that has none or is not Unicode."""
    tokenizer = text_encoder(session).tokenizer
    try:
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    except TypeError:
        raise InputError("a text is not Unicode (is the file or the command line UTF-8?)") from None
    for text, encoding in zip(texts, encodings, strict=True):
        if not encoding.ids:
            raise InputError(f"{text!r} has no tokens; give at least one word to continue")
    return [encoding.ids for encoding in encodings]


def with_eos(session: Session, settings: Settings | None) -> Settings:
    """The settings, with the package's tokens that end a text unless they have some."""
    settings = settings or Settings()
    return settings if settings.eos else replace(settings, eos=eos_tokens(session.package, text_encoder(session)))


def show(results: Sequence[dict[str, Any]], console: "Console") -> None:
    """Each text and how it goes on."""
    from rich.text import Text

    for result in results:
        console.print(Text.assemble((result["input"], "bold"), result["text"]), soft_wrap=True)
