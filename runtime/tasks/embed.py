"""embed: one vector a text; texts that mean alike have vectors that point alike."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime.session import Session
from isoformer.runtime.text import run_batches, text_encoder

if TYPE_CHECKING:
    from rich.console import Console


def run(
    session: Session,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": text, "embedding": [float, …]}, …]"""
    vectors = embeddings(session, texts, truncate=truncate, progress=progress)
    return [{"input": text, "embedding": row.tolist()} for text, row in zip(texts, vectors, strict=True)]


def embeddings(
    session: Session,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
) -> np.ndarray:
    """The vectors as a (texts, E) float32 array."""
    encoder = text_encoder(session, truncate=truncate)
    width = next(spec.axes[1] for spec in session.signature.outputs if spec.name == "sentence_embedding")
    result = np.empty((len(texts), int(width)), np.float32)
    for index, _, row in run_batches(session, encoder, texts, "sentence_embedding", progress=progress):
        result[index] = row
    return result


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Cosine of every pair: (n, E) → (n, n); 0 beside a zero vector."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms == 0, 1, norms)
    return unit @ unit.T


def show(results: Sequence[dict[str, Any]], console: "Console", what: str = "text") -> None:
    """A table of the cosine similarity of every pair; `what` they are stands above."""
    from rich.table import Table
    from rich.text import Text

    matrix = similarities(np.array([result["embedding"] for result in results] or np.empty((0, 1))))
    if len(results) == 1:
        vector = results[0]["embedding"]
        console.print(f"{len(vector)} numbers, the first of them {[round(x, 4) for x in vector[:6]]} … (all: --json)")
        return
    table = Table(title="cosine similarity", title_justify="left")
    table.add_column("")
    table.add_column(what, overflow="fold")
    for number in range(1, len(results) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (result, row) in enumerate(zip(results, matrix, strict=True), 1):
        table.add_row(str(number), Text(result["input"]), *(f"{value:.4f}" for value in row))
    console.print(table)
