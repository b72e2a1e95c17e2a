"""What every engine is given: shapes of random ids with ragged padding, and real sentences, as files."""

import csv
import re
from pathlib import Path

import numpy as np

from benchmarks.latency import SHAPES, make_inputs

Shape = tuple[int, int, int]  # batch, length, real tokens
DATASETS = ".assets/orangecontrib/text/datasets"
TABLES = ("20newsgroups-test", "election-tweets-2016", "friends-transcripts", "grimm-tales")  # as many from each
# for the curves: one sequence that grows, a batch whose share of real tokens grows, and a full rectangle
LENGTHS: tuple[Shape, ...] = tuple((1, length, length) for length in (16, 32, 64, 128, 256, 512))
SHARES: tuple[Shape, ...] = tuple((8, 128, real) for real in (256, 512, 697, 768, 1024))
FULL: Shape = (16, 256, 4096)
ALL: tuple[Shape, ...] = tuple(dict.fromkeys((*SHAPES, *LENGTHS, *SHARES, FULL)))
SENTENCES, CALIBRATION = 1000, 300
WIDTH = 64  # tokens, to which all sentences are cut or padded: shorter ones stand beside longer ones


def name(shape: Shape) -> str:
    """batch×length×real tokens, for files and people's arguments."""
    return "x".join(map(str, shape))


def read(text: str) -> Shape:
    """The shape that a name means; ValueError for what is none of ALL."""
    found = {name(shape): shape for shape in ALL}
    if text not in found:
        raise ValueError(f"{text} is none of {', '.join(found)}")
    return found[text]


def row_lengths(shape: Shape) -> list[int]:
    """Real tokens of each row."""
    return make_inputs(*shape)["attention_mask"].sum(1).tolist()


def write(root: Path, checkpoint: Path, folder: Path) -> None:
    """All of them into the folder, NAME.npz each."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for shape in ALL:
        _save(folder / f"{name(shape)}.npz", make_inputs(*shape))
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(WIDTH)
    kinds: dict[str, list[list[int]]] = {"sentences": [], "calibration": []}
    for table in TABLES:
        texts = sentences(root / DATASETS / f"{table}.tab")
        order = np.random.default_rng(0).permutation(len(texts)).tolist()
        for kind, count in (("sentences", SENTENCES), ("calibration", CALIBRATION)):
            drawn = [order.pop() for _ in range(count // len(TABLES))]
            kinds[kind] += [tokenizer.encode(texts[number]).ids for number in drawn]
    for kind, rows in kinds.items():
        mixed = np.random.default_rng(0).permutation(len(rows))
        _save(folder / f"{kind}.npz", padded([rows[number] for number in mixed]))


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(file, allow_pickle=False, **arrays)


def padded(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Ids padded on the right to WIDTH, and the mask."""
    mask = (np.arange(WIDTH) < np.array([[len(row)] for row in rows])).astype(np.int64)
    ids = np.zeros_like(mask)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return {"input_ids": ids, "attention_mask": mask}


def sentences(table: Path) -> list[str]:
    """The different sentences of five words and more in one of Orange's tables of texts, in order."""
    csv.field_size_limit(10**9)
    with table.open(encoding="utf-8", newline="") as file:
        texts = [max(row, key=len) for row in list(csv.reader(file, delimiter="\t"))[3:] if row]
    found = (" ".join(part.split()) for text in texts for part in re.split(r"(?<=[.!?])\s+", text))
    return list(dict.fromkeys(part for part in found if len(re.findall(r"[A-Za-z]{2,}", part)) >= 5))
