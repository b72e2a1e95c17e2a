"""classify: which of the model's classes a text belongs to."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime.errors import PackageError
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
    """[{"input": text, "label": the best, "scores": {label: score}}, …]

    Scores are probabilities that sum to 1, or one of its own for each label (multi_label), or the
    model's numbers as they are (regression).
    """
    encoder = text_encoder(session, truncate=truncate)
    task = session.package.task
    results: list[dict[str, Any]] = [{} for _ in texts]
    for index, _, logits in run_batches(session, encoder, texts, "logits", progress=progress):
        results[index] = result(texts[index], logits.astype(np.float64), task["labels"], task["problem"])
    return results


def result(text: str, logits: np.ndarray, labels: Sequence[str], problem: str) -> dict[str, Any]:
    """What `run` says of one input."""
    scores, names = to_scores(logits, problem), distinct(labels)
    if scores.shape != (len(names),):
        raise PackageError(f"the package has {len(names)} labels, and its graph gives logits {scores.shape}")
    return {
        "input": text,
        "label": names[int(scores.argmax())],
        "scores": dict(zip(names, scores.tolist(), strict=True)),
    }


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels; those that several classes have, as ImageNet's two "crane", with the class' number behind."""
    counts = Counter(labels)
    return [f"{label} ({place})" if counts[label] > 1 else label for place, label in enumerate(labels)]


def to_scores(logits: np.ndarray, problem: str) -> np.ndarray:
    """softmax for single_label, sigmoid for multi_label, the numbers themselves for regression."""
    if problem == "regression":
        return logits
    if problem == "multi_label":
        return np.exp(-np.logaddexp(0, -logits))
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def show(results: Sequence[dict[str, Any]], console: "Console", what: str = "text") -> None:
    """A table of each input's best labels; `what` it is stands above."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column(what, overflow="fold")
    table.add_column("label")
    table.add_column("score", justify="right")
    for result in results:
        best = sorted(result["scores"].items(), key=lambda item: -item[1])[:3]
        labels = Text("\n".join(label for label, _ in best))
        table.add_row(Text(result["input"]), labels, "\n".join(f"{v:.4f}" for _, v in best))
    console.print(table)
