"""Sentence pairs for `train_translation`: gettext's .po files, a split without leaks, subwords, batches."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from isoformer.models.checkpoints import TextFile

FILES = "**/locale/fr/LC_MESSAGES/django.po"
LONGEST = 200  # characters of a sentence; longer ones are left out
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
PAD_ID, EOS_ID = 0, 1

_LINE = re.compile(r'(?:(msgctxt|msgid_plural|msgid|msgstr)(?:\[(\d+)\])?\s*)?"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


def read_pairs(folder: Path) -> list[Pair]:
    """The English–French pairs of every django.po below `folder`, the first translation of each sentence.

    Left out: what has no translation, and pairs with a side of more than `LONGEST` characters. Raises
    FileNotFoundError when no file is there, ValueError for a file that is not of gettext's format.
    """
    files = sorted(folder.glob(FILES))
    if not files:
        raise FileNotFoundError(f"{folder} has no {FILES}: make assets")
    found: dict[str, str] = {}
    for file in files:
        for pair in _read_po(file):
            source, target = pair.source.strip(), pair.target.strip()
            if source and target and max(len(source), len(target)) <= LONGEST:
                found.setdefault(source, target)
    return [Pair(source, target) for source, target in found.items()]


def _read_po(file: Path) -> list[Pair]:
    try:
        return parse_po(file.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError among them
        raise ValueError(f"{file}: {error}") from None


def parse_po(text: str) -> list[Pair]:
    """The msgid and msgstr of each entry that is translated and not fuzzy; of plurals, the singular.

    Raises ValueError with the line's number for one that is not of the format. The format:
    https://www.gnu.org/software/gettext/manual/html_node/PO-Files.html
    """
    pairs: list[Pair] = []
    entry: dict[str, str] = {}
    field, fuzzy = "", False
    for number, line in enumerate([*text.splitlines(), 'msgid ""'], 1):  # one more begins, so that the last one ends
        line = line.strip()
        begins = line.startswith(("#", "msgctxt", "msgid ", 'msgid"'))
        if begins and field.startswith("msgstr"):
            if entry["msgid"] and entry["msgstr"] and not fuzzy:  # an empty msgid is the file's header
                pairs.append(Pair(entry["msgid"], entry["msgstr"]))
            entry, field, fuzzy = {}, "", False
        if not line or line.startswith("#"):
            fuzzy |= line.startswith("#,") and "fuzzy" in line
            continue
        match = _LINE.fullmatch(line)
        if match is None or not (match[1] or field):
            raise ValueError(f"line {number} is not of a .po file: {line[:60]}")
        if match[1]:
            field = match[1] if match[2] in (None, "0") else f"msgstr {match[2]}"
        entry[field] = entry.get(field, "") + _unescape(match[3], number)
    return pairs


def _unescape(quoted: str, number: int) -> str:
    try:
        return re.sub(r"\\(.)", lambda match: _ESCAPES[match[1]], quoted)
    except KeyError as error:
        raise ValueError(f"line {number} has an escape that is not known: \\{error.args[0]}") from None


def split(pairs: Iterable[Pair], *, seed: int = 0, share: float = 0.1) -> tuple[list[Pair], list[Pair]]:
    """(for training, held out): about `share` of the sentences are held out.

    Sentences that differ in case, punctuation and spaces alone stay together. Where one goes depends on itself and
    the seed, not on the others, so more pairs move none.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(f"{seed} {key(pair.source)}".encode()).digest()
        sides[int.from_bytes(digest[:4], "big") < share * 2**32].append(pair)
    return sides


def key(sentence: str) -> str:
    """The sentence's letters and digits in lower case, or all of it where it has none."""
    return re.sub(r"[\W_]+", " ", sentence.casefold()).strip() or sentence


def train_tokenizer(pairs: Iterable[Pair], pieces: int) -> Tokenizer:
    """A vocabulary of at most `pieces` subwords of both languages, whose decode gives back every text.

    Byte-pair encoding over bytes; `</s>` ends each text. Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909).
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        min_frequency=2,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)])
    return tokenizer


def package_files(tokenizer: Tokenizer) -> list[TextFile]:
    """What a package carries so that it takes and gives text."""
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    generation = {"pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "decoder_start_token_id": PAD_ID}
    return [
        TextFile("tokenizer.json", tokenizer.to_str(pretty=True)),
        TextFile("tokenizer_config.json", json.dumps(special, indent=2) + "\n"),
        TextFile("generation_config.json", json.dumps(generation, indent=2) + "\n"),
    ]


@dataclass(frozen=True)
class Batch:
    """Padded pairs: source (B, S) and its mask, what the decoder sees (B, L), and what it is to say (B, L).

    The decoder sees its target one step late, behind `<pad>`; padding of the target is `PAD_ID`, of the mask 0.
    """

    source: Tensor
    source_mask: Tensor
    decoder_input: Tensor
    target: Tensor


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """The token ids of each pair, with `</s>`."""
    sides = ([pair.source for pair in pairs], [pair.target for pair in pairs])
    sources, targets = ([encoding.ids for encoding in tokenizer.encode_batch(side)] for side in sides)
    return list(zip(sources, targets, strict=True))


def batches(
    encoded: Sequence[tuple[list[int], list[int]]], tokens: int, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """Batches of pairs of like length, with at most `tokens` target tokens, padding too, or of one pair.

    With a generator the batches come in its order, and so do pairs of the same length.
    """
    shuffled = range(len(encoded)) if generator is None else torch.randperm(len(encoded), generator=generator).tolist()
    order = sorted(shuffled, key=lambda i: (len(encoded[i][1]), len(encoded[i][0])))
    groups: list[list[int]] = [[]]
    for index in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(encoded[index][1]) > tokens:
            groups.append([])
        groups[-1].append(index)
    if generator is not None:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    for group in groups:
        yield collate([encoded[index] for index in group])


def collate(encoded: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """One batch, padded on the right."""
    source = pad([ids for ids, _ in encoded])
    target = pad([ids for _, ids in encoded])
    mask = pad([[1] * len(ids) for ids, _ in encoded])
    return Batch(source, mask, torch.cat([torch.full_like(target[:, :1], PAD_ID), target[:, :-1]], 1), target)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, longest) int64, filled up with `PAD_ID`, which is 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD_ID)
