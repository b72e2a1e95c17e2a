"""MovieLens' ratings as histories: a split by time, batches, two baselines, and how a ranking is measured."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.preprocessing import normalize
from torch import Tensor

from isoformer.models.checkpoints import TextFile

AT = 10  # places of the ranking that count


@dataclass(frozen=True)
class Item:
    """An item by the catalogue's own number and its title, which is "" where there is none."""

    id: str
    title: str


@dataclass(frozen=True)
class Ratings:
    """The catalogue, and for each user the places in it of what they rated, oldest first."""

    items: list[Item]
    histories: list[list[int]]


def read_ratings(folder: Path, least: int = 5) -> Ratings:
    """RecBole's ml-100k.inter and, if it is there, ml-100k.item; users of fewer than `least` ratings are left out.

    A rating counts whatever its stars. Ratings of one user and second keep the order of the file.
    Raises ValueError, one line, for files that are missing or not of the format.
    """
    ratings = folder / "ml-100k.inter"
    if not ratings.is_file():
        raise ValueError(f"{ratings} is not there: make assets")
    rows = sorted(
        _rows(ratings, "user_id:token", "item_id:token", "timestamp:float"), key=lambda r: (r[0], float(r[2]))
    )
    titles = _titles(folder / "ml-100k.item")
    known = sorted({item for _, item, _ in rows} | titles.keys(), key=lambda name: (len(name), name))
    place = {name: number for number, name in enumerate(known)}
    by_user = ([place[item] for _, item, _ in group] for _, group in groupby(rows, key=lambda row: row[0]))
    histories = [history for history in by_user if len(history) >= least]
    return Ratings([Item(name, titles.get(name, "")) for name in known], histories)


def _titles(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    return {
        item: f"{title} ({year})" if year else title
        for item, title, year in _rows(file, "item_id:token", "movie_title:token_seq", "release_year:token")
    }


def _rows(file: Path, *columns: str) -> Iterator[list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if missing := set(columns) - set(table.fieldnames or ()):
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}")
        for row in table:
            yield [row[column] or "" for column in columns]


@dataclass(frozen=True)
class Asked:
    """What came before, for each user, and the item that came next."""

    histories: list[list[int]]
    targets: np.ndarray


def split(histories: Sequence[list[int]]) -> tuple[list[list[int]], Asked, Asked]:
    """Leave-one-out: of each user the last item is the test's, the one before it the validation's; the rest trains."""
    training = [history[:-2] for history in histories]
    validation = Asked(training, np.array([history[-2] for history in histories]))
    test = Asked([history[:-1] for history in histories], np.array([history[-1] for history in histories]))
    return training, validation, test


def pad(histories: Iterable[Sequence[int]], longest: int) -> tuple[Tensor, Tensor]:
    """The most recent `longest` items of each: item_ids and attention_mask (B, L), padded on the right."""
    rows = [torch.tensor(history[-longest:]) for history in histories]
    masks = [torch.ones_like(row) for row in rows]
    return (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        torch.nn.utils.rnn.pad_sequence(masks, batch_first=True),
    )


def seen(histories: Sequence[Sequence[int]], num_items: int) -> csr_array:
    """(users, num_items): 1 where the item is in the history."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    columns = np.concatenate([np.asarray(history) for history in histories])
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(histories), num_items))


def popularity(training: Sequence[list[int]], asked: Asked, num_items: int) -> np.ndarray:
    """(users, num_items): how many users rated the item, the same for everybody."""
    counts = seen(training, num_items).sum(0)
    return np.tile(counts, (len(asked.targets), 1))


def item_neighbours(training: Sequence[list[int]], asked: Asked, num_items: int) -> np.ndarray:
    """(users, num_items): item-based collaborative filtering, the cosines of an item's users with those of each item
    of the history, added up (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071)."""
    columns = csr_array(normalize(seen(training, num_items), axis=0))
    return (seen(asked.histories, num_items) @ (columns.T @ columns)).toarray()


def followers(training: Sequence[list[int]], asked: Asked, num_items: int) -> np.ndarray:
    """(users, num_items): how often the item came right behind the user's last one: a Markov chain."""
    pairs = np.array([pair for history in training for pair in pairwise(history)])
    counts = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(num_items, num_items))
    return counts[[history[-1] for history in asked.histories]].toarray()


def best(scores: np.ndarray, histories: Sequence[list[int]], count: int = AT) -> np.ndarray:
    """(users, count): the items with the highest scores, best first, of all that are not in the whole history.

    Of equal scores the item with the lower number comes first.
    """
    scores = np.where(seen(histories, scores.shape[1]).toarray() > 0, -np.inf, scores)
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def hit_and_ndcg(ranking: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Hit@k: the share of users whose item is among the k; NDCG@k: the mean of 1 / log2(place + 1), 0 if it is not."""
    found = ranking == targets[:, None]
    discounts = 1 / np.log2(np.arange(ranking.shape[1]) + 2)
    return float(found.any(1).mean()), float((found * discounts).sum(1).mean())


def package_files(items: Sequence[Item]) -> tuple[TextFile, ...]:
    """items.json, by which the package knows the catalogue's own numbers and titles."""
    content = [{"id": item.id, "title": item.title} for item in items]
    return (TextFile("items.json", json.dumps(content, ensure_ascii=False, indent=0) + "\n"),)
