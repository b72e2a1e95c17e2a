"""A dialogue with a package: its own chat template, and a cache that is kept from turn to turn."""

from collections.abc import Iterator, Sequence
from typing import Any

from isoformer.runtime.binding import Decoder
from isoformer.runtime.detokenizer import Detokenizer
from isoformer.runtime.errors import InputError, PackageError
from isoformer.runtime.generation import Settings, Stats
from isoformer.runtime.package import Package
from isoformer.runtime.session import Session
from isoformer.runtime.tasks.generate import encode, pieces, with_eos
from isoformer.runtime.text import TextEncoder, text_encoder

Message = dict[str, str]
FILE = "chat_template.jinja"


class Chat:
    """A dialogue; `say` streams the answer to a message.

    The whole dialogue is rendered anew for each turn, as the template was made for. The tokens that it
    has in common with those in the cache, as a rule all but the new message, are not computed again.

    system: the first message, of the role "system". Raises PackageError for a package without a chat template.
    """

    def __init__(
        self, session: Session, *, system: str | None = None, settings: Settings | None = None, stop: Sequence[str] = ()
    ) -> None:
        self.session = session
        self.stop = tuple(stop)
        self._decoder = Decoder(session)
        self._encoder = text_encoder(session)
        self._template = template(self._encoder)
        self._settings = with_eos(session, settings)
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Message] = []
        self.stats = Stats()
        self.reset()

    def reset(self) -> None:
        """Forgets the dialogue but for the system message. What its beginning has in the cache is still of use."""
        self.messages = list(self._system)

    def say(self, text: str) -> Iterator[str]:
        """The answer, piece by piece as tokens come; `stats` is this turn's.

        Raises InputError, and leaves the dialogue as it was, when with this message it is longer than the model holds.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        (prompt,) = encode(self.session, [render(self._encoder, self._template, messages)], add_special_tokens=False)
        limit = self._decoder.limit
        if limit is not None and len(prompt) >= limit:
            raise InputError(
                f"the dialogue has {len(prompt)} tokens; this model holds {limit} with the answer: "
                "start a new one with /reset, or say less"
            )
        self.stats, new = Stats(), list[int]()
        detokenizer = Detokenizer(self._encoder.tokenizer, (), self.stop, self._settings.eos)
        yield from pieces(self._decoder, prompt, detokenizer, self._settings, self.stats, new)
        self.messages = [*messages, {"role": "assistant", "content": detokenizer.text(new)}]


def render(encoder: TextEncoder, compiled: Any, messages: Sequence[Message]) -> str:
    """The dialogue as the `compiled` template writes it, up to the next answer.

    Raises InputError when the template refuses it and PackageError when the template itself fails.
    """
    import jinja2

    from isoformer.runtime.template import render as render_within

    tokens = {name: _content(encoder.config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    try:
        return render_within(compiled, messages=messages, add_generation_prompt=True, **tokens)
    except jinja2.TemplateError as error:  # raise_exception of the template among them
        raise InputError(f"the chat template refuses this dialogue: {_line(error)}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError) as error:
        raise PackageError(f"the chat template of {encoder.session.package.path} fails: {_line(error)}") from None


def template(encoder: TextEncoder) -> Any:
    """The compiled template: of chat_template.jinja, else of tokenizer_config.json, where "default" is the one of many.

    It comes with the package, so it runs in jinja2's sandbox, within a budget (see `template.py`).
    """
    import jinja2

    from isoformer.runtime.template import Environment

    path = encoder.session.package.path
    source: Any = template_file(encoder.session.package)
    if source is None:
        source = encoder.config.get("chat_template")
        if isinstance(source, list):
            named = [entry for entry in source if isinstance(entry, dict)]
            source = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if not isinstance(source, str):
        raise PackageError(f"{path} has no chat template, so it holds no dialogue; continue a text: isoformer run")

    try:
        return Environment().from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError, ValueError) as error:
        raise PackageError(f"the chat template of {path} cannot be read: {_line(error)}") from None


def template_file(package: Package) -> str | None:
    """The text of chat_template.jinja, None without one. Raises PackageError where it is no text."""
    if not package.has(FILE):
        return None
    try:
        return package.file(FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"{package.path / FILE} cannot be read: {_line(error)}") from None


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json, which writes it as a string or as an object."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
