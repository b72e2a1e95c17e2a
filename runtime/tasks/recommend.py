"""recommend: what a user may want next, from what they chose so far, oldest first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime.batching import plan
from isoformer.runtime.errors import InputError, PackageError
from isoformer.runtime.forms import read_json
from isoformer.runtime.package import Package
from isoformer.runtime.session import Session

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLE = '"1 2 3"'
FILE = "items.json"
BATCH_SIZE = 32
SEPARATOR = ";"


def run(
    session: Session,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": text, "items": [the best first], "scores": [the model's numbers], "titles": [of the items]}, …]

    A text is a history, oldest first: items with spaces between them, or titles with semicolons. Where the package
    has items.json, a list of {"id", "title"}, items are its ids and answers carry titles; else they are the model's
    own numbers. truncate: of a history that is too long, read the most recent items; what is cut off is not
    recommended either, so there may be fewer items.

    Raises InputError, one line, for a history that is empty or too long and for an item that is not known.
    """
    catalogue = read_catalogue(session.package)
    limit = session.signature.axes["history_length"][1]
    histories = [_history(text, catalogue, limit, truncate=truncate) for text in texts]
    results: list[dict[str, Any]] = [{} for _ in texts]
    lengths = [min(len(history), limit or len(history)) for history in histories]
    for chosen in plan(lengths, session.cost, BATCH_SIZE):
        outputs = session.run(_inputs([histories[i][-(limit or 0) :] for i in chosen]), ["items", "scores"])
        for number, items, scores in zip(chosen, outputs["items"], outputs["scores"], strict=True):
            cut = set(histories[number][:-limit] if limit else ())
            kept = [place for place, item in enumerate(items.tolist()) if item not in cut]
            results[number] = {
                "input": texts[number],
                "items": [catalogue.ids[item] for item in items[kept]],
                "scores": scores[kept].tolist(),
            }
            if catalogue.titles:
                results[number]["titles"] = [catalogue.titles[item] for item in items[kept]]
        progress(len(chosen))
    return results


@dataclass(frozen=True)
class Catalogue:
    """The items' ids and titles by the model's numbers; ids are the numbers themselves where the package has no other.

    places: number of each id and of each title in small letters, those of a title that several items have.
    """

    ids: Sequence[Any]
    titles: Sequence[str]
    places: dict[str, list[int]]


def read_catalogue(package: Package) -> Catalogue:
    """The package's items. Raises PackageError when items.json is not a list of an id and a title for each."""
    count = next(spec.axes[1] for spec in package.signature.outputs if spec.name == "logits")
    if not package.has(FILE):
        return Catalogue(range(int(count)), (), {str(number): [number] for number in range(int(count))})
    file = package.file(FILE)
    try:
        items = read_json(file)
        ids, titles = [str(item["id"]) for item in items], [str(item["title"]) for item in items]
    except (ValueError, TypeError, KeyError) as error:
        raise PackageError(f"{file} cannot be read as a list of items, each with id and title: {error!r}") from None
    if len(ids) != count or len(set(ids)) != len(ids):
        raise PackageError(f"{file} has {len(set(ids))} different items; the model has {count}")
    places: dict[str, list[int]] = {}
    for number, title in enumerate(titles):
        if title:
            places.setdefault(title.strip().lower(), []).append(number)
    return Catalogue(ids, titles if any(titles) else (), places | {name: [n] for n, name in enumerate(ids)})


def _history(text: str, catalogue: Catalogue, limit: int | None, *, truncate: bool) -> list[int]:
    """The model's numbers of the items that a text names."""
    if text.strip().lower() in catalogue.places:
        parts = [text]
    elif SEPARATOR in text:
        parts = text.split(SEPARATOR)
    elif not catalogue.titles or (text.split()[:1] and text.split()[0] in catalogue.places):
        parts = text.split()
    else:
        parts = [text]
    history = [_item(part.strip(), catalogue) for part in parts if part.strip()]
    if not history:
        raise InputError("a history is empty; give at least one item")
    if limit is not None and len(history) > limit and not truncate:
        raise InputError(
            f"a history of {len(history)} items is too long; this model takes {limit} at most: pass --truncate "
            "(truncate=True) to read the most recent ones"
        )
    return history


def _item(name: str, catalogue: Catalogue) -> int:
    found = catalogue.places.get(name) or catalogue.places.get(name.lower(), [])
    if len(found) > 1:
        ids = ", ".join(str(catalogue.ids[number]) for number in found)
        raise InputError(f"several items have the title {name!r}; name one by its id: {ids}")
    if not found:
        ways = f"items are ids such as {catalogue.ids[0]}, with spaces between them"
        if catalogue.titles:
            ways += f", or titles such as {catalogue.titles[0]!r}, with semicolons"
        raise InputError(f"there is no item {name[:60]!r}; {ways}")
    return found[0]


def _inputs(histories: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """One batch, padded on the right to its longest history."""
    shape = (len(histories), max(len(history) for history in histories))
    item_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, history in enumerate(histories):
        item_ids[row, : len(history)] = history
        attention_mask[row, : len(history)] = 1
    return {"item_ids": item_ids, "attention_mask": attention_mask}


def show(results: Sequence[dict[str, Any]], console: "Console") -> None:
    """A table of what is recommended to each history."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    titled = any("titles" in result for result in results)
    for column in ("history", "item", *(["title"] if titled else [])):
        table.add_column(column, overflow="fold")
    table.add_column("score", justify="right")
    for result in results:
        cells = [Text(result["input"]), "\n".join(map(str, result["items"]))]
        cells += [Text("\n".join(result["titles"]), no_wrap=True, overflow="ellipsis")] if titled else []
        table.add_row(*cells, "\n".join(f"{score:.3f}" for score in result["scores"]))
    console.print(table)
