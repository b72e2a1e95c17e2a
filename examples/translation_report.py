"""What `train_translation` shows: translations of sentences that were held out, and how good they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sacrebleu
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from examples.common import table
from examples.translation_data import Pair, encode_pairs
from isoformer.models.families.encoder_decoder import Model
from isoformer.runtime import Graphs
from isoformer.runtime.generation import Settings
from isoformer.runtime.tasks import translate

LONGEST_ANSWER = 100  # tokens
BEAMS = 4


class Answers(NamedTuple):
    """What one way of decoding said to some pairs: texts, and their tokens with `</s>` where they have any."""

    way: str
    pairs: Sequence[Pair]
    texts: list[str]
    tokens: list[list[int]]


def report(
    package: Path, model: Model, training: list[Pair], held_out: list[Pair], tokenizer: Tokenizer, console: Console
) -> list[Answers]:
    """Prints BLEU and chrF of each way of decoding, how many answers are the same, and every tenth of them."""
    seen = training[:: max(1, len(training) // len(held_out))][: len(held_out)]
    plain = in_pytorch("PyTorch, greedy, no cache", model, held_out, tokenizer)
    greedy = in_onnx_runtime("ONNX Runtime, greedy", package, held_out, 1)
    beams = in_onnx_runtime(f"ONNX Runtime, {BEAMS} beams", package, held_out, BEAMS)
    sources = [pair.source for pair in held_out]
    rows = [
        plain,
        greedy,
        beams,
        Answers("the English, as it stands", held_out, sources, []),
        in_pytorch("PyTorch, greedy, on training pairs", model, seen, tokenizer),
    ]
    console.print(scores(rows, reference=plain))
    console.print(
        f"A small model's quality: {len(held_out)} held-out sentences, {len(training)} pairs to learn from, "
        "which it nearly knows by heart (last row). The sentences are short texts of one program and resemble each "
        "other: this says nothing about other English."
    )
    console.print(samples(held_out, greedy.texts, beams.texts, every=10))
    return rows


def in_pytorch(way: str, model: Model, pairs: Sequence[Pair], tokenizer: Tokenizer) -> Answers:
    """Greedy answers of the model itself."""
    longest = min(LONGEST_ANSWER, model.config.max_positions - 1)  # the first position is the start's
    tokens = translate_greedily(model, [ids for ids, _ in encode_pairs(tokenizer, pairs)], longest)
    return Answers(way, pairs, tokenizer.decode_batch(tokens), tokens)


@torch.no_grad()
def translate_greedily(model: Model, sources: Sequence[list[int]], longest: int) -> list[list[int]]:
    """The likeliest token again and again, in plain PyTorch, until `</s>`, which is kept, or `longest` tokens.

    All that was said is read anew for each token: no cache, so a package's cache is compared with none.
    """
    model.eval()
    eos, start = model.config.eos_token_id, model.config.decoder_start_token_id
    answers = []
    for source in sources:  # one at a time: nothing is padded
        source_ids = torch.tensor([source])
        said = torch.tensor([[start]])
        while said.shape[1] <= longest and said[0, -1] != eos:
            logits = model(source_ids, torch.ones_like(source_ids), said)[:, -1]
            said = torch.cat([said, logits.argmax(-1, keepdim=True)], 1)
        answers.append(said[0, 1:].tolist())
    return answers


def in_onnx_runtime(way: str, package: Path, pairs: Sequence[Pair], beams: int) -> Answers:
    """Answers of the package, as an app would ask for them."""
    settings = Settings(beams=beams, max_tokens=LONGEST_ANSWER)
    found = translate.run(Graphs(package), [pair.source for pair in pairs], settings=settings)
    return Answers(way, pairs, [one["text"] for one in found], [one["token_ids"] for one in found])


def scores(rows: Sequence[Answers], reference: Answers) -> Table:
    """BLEU, chrF, and how many answers have the tokens of the reference; sacrebleu's defaults."""
    made = []
    for row in rows:
        right = [[pair.target for pair in row.pairs]]
        compared = bool(row.tokens) and row is not reference and row.pairs is reference.pairs
        same = sum(mine == other for mine, other in zip(row.tokens, reference.tokens, strict=True)) if compared else 0
        bleu, chrf = sacrebleu.corpus_bleu(row.texts, right).score, sacrebleu.corpus_chrf(row.texts, right).score
        made.append((row.way, f"{bleu:.1f}", f"{chrf:.1f}", f"{same} of {len(row.pairs)}" if compared else ""))
    headings = ("BLEU", "chrF", f"same tokens as {reference.way.split(',')[0]}")
    return table("French of sentences that were held out", headings, made)


def samples(pairs: Sequence[Pair], greedy: Sequence[str], beams: Sequence[str], every: int) -> Table:
    """Every so many sentences, good or bad."""
    table = Table(title=f"Every {every}th of them", show_lines=True)
    for heading in ("English", "Django's French", "greedy", f"{BEAMS} beams"):
        table.add_column(heading, ratio=1)
    for pair, *answers in list(zip(pairs, greedy, beams, strict=True))[::every]:
        table.add_row(*(Text(text) for text in (pair.source, pair.target, *answers)))
    return table
