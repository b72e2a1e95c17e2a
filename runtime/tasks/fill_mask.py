"""fill-mask: which words fit where the text has the model's mask token."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime.errors import InputError, PackageError
from isoformer.runtime.session import Session
from isoformer.runtime.tasks.classify import to_scores
from isoformer.runtime.text import run_batches, text_encoder

if TYPE_CHECKING:
    from rich.console import Console

BEST = 5
BATCH_SIZE = 4  # a score for every word at every place: 60 kB a token with 30,000 words


def run(
    session: Session,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": text, "tokens": [{"token": word, "score": probability, "position": index}, …]}, …]

    The few best words of each mask token, best first. Raises InputError for a text without one.
    """
    encoder = text_encoder(session, truncate=truncate)
    mask = encoder.special("mask", ("[MASK]", "<mask>"))
    if mask is None:
        raise PackageError(f"the tokenizer of {session.package.path} has no mask token")
    word = encoder.tokenizer.id_to_token(mask)
    found = zip(texts, encoder.encode(texts), strict=True)
    lacking = next((text for text, encoding in found if mask not in encoding.ids), None)
    if lacking is not None:
        raise InputError(f"{lacking[:60]!r} has no {word}: put it where a word is to be found")
    results: list[dict[str, Any]] = [{} for _ in texts]
    for index, encoding, logits in run_batches(
        session, encoder, texts, "logits", batch_size=BATCH_SIZE, progress=progress
    ):
        tokens = []
        for position in (place for place, token in enumerate(encoding.ids) if token == mask):
            scores = to_scores(logits[position].astype(np.float64), "single_label")
            best = (int(token) for token in np.argsort(-scores, kind="stable"))
            words = (token for token in best if encoder.tokenizer.id_to_token(token) is not None)
            for token in islice(words, BEST):
                found = encoder.tokenizer.decode([token]).strip() or encoder.tokenizer.id_to_token(token)
                tokens.append({"token": found, "score": float(scores[token]), "position": position})
        results[index] = {"input": texts[index], "tokens": tokens}
    return results


def show(results: Sequence[dict[str, Any]], console: "Console") -> None:
    """A table of the words that fit each text."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("text", overflow="fold")
    table.add_column("word")
    table.add_column("score", justify="right")
    for result in results:
        words = result["tokens"]
        found, scores = Text("\n".join(t["token"] for t in words)), "\n".join(f"{t['score']:.4f}" for t in words)
        table.add_row(Text(result["input"]), found, scores)
    console.print(table)
