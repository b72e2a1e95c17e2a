"""Token ids to text while they come: no broken characters, nothing of a stop string."""

import json
from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Package
from isoformer.runtime.text import TextEncoder

BROKEN = "\ufffd"  # what bytes decode to that are not, or not yet, a character

CONTEXT = 8  # tokens before the new ones: more than the bytes of a character


class Detokenizer:
    """The text of new tokens, which depends on those before them where a tokenizer writes a space as part of a word.

    context: the tokens before. stop: strings that end the text, which keeps nothing of them. silent: tokens
    without text; special tokens have none either. Raises InputError for an empty stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: Sequence[int] = (), stop: Sequence[str] = (), silent: Collection[int] = ()
    ) -> None:
        if "" in stop:
            raise InputError("a stop string is empty; give at least one character")
        self.tokenizer = tokenizer
        self.context = list(context[-CONTEXT:])
        self.stop = tuple(stop)
        self.silent = frozenset(silent)
        self._before = len(tokenizer.decode(self.context).rstrip(BROKEN)) if self.context else 0

    def text(self, new: Sequence[int]) -> str:
        """The whole text of the new tokens, up to the first stop string."""
        text = self._decode(new)
        return text[: min((place for s in self.stop if (place := text.find(s)) >= 0), default=len(text))]

    def stopped(self, new: Sequence[int]) -> bool:
        """Whether the text holds a stop string."""
        text = self._decode(new) if self.stop else ""
        return any(s in text for s in self.stop)

    def settled(self, new: Sequence[int]) -> str:
        """The part of the text that no later token changes: whole characters, and no beginning of a stop string."""
        text = self.text(new).rstrip(BROKEN)
        held = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return text[: len(text) - held]

    def _decode(self, new: Sequence[int]) -> str:
        return self.tokenizer.decode(self.context + [t for t in new if t not in self.silent])[self._before :]


def eos_tokens(package: Package, encoder: TextEncoder) -> tuple[int, ...]:
    """The tokens that end a text: of generation_config.json, else config.json, else the tokenizer's own."""
    found = configured(package, "eos_token_id")
    if found:
        return found
    own = encoder.special("eos", ())
    return () if own is None else (own,)


def configured(package: Package, name: str) -> tuple[int, ...]:
    """Tokens that generation_config.json names, else config.json; () where neither does."""
    for file in ("generation_config.json", "config.json"):
        try:
            found = json.loads((package.path / file).read_text(encoding="utf-8")).get(name)
        except (OSError, ValueError, AttributeError):
            continue  # the package may have been made without it
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()
