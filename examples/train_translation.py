"""Trains a small English–French Transformer from nothing, ships it as ONNX, and compares both on held-out sentences.

    make assets
    python -m examples.train_translation demo/translation

The pairs are the translations of Django's own texts, some 800: the model learns the training sentences by heart and
does what it can with the others. It shows the way from training to a package, not what translation can be.

    translation_data.py    .po files → pairs → split → subwords → batches
    training.py            the loop and the checkpoint
    translation_report.py  greedy search in PyTorch, BLEU and chrF beside each other
    train_translation.py   this file: the settings, the loss, and one after the other

The checkpoint and the picture stand beside the package, in demo/translation-training. Ctrl-C ends the training after
the last whole epoch, and `--resume` goes on from there to the very same result.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor

from examples import translation_data as data
from examples.common import Minutes, Resume, Target, export_package, program
from examples.training import Picture, Step, Training, weights
from examples.translation_report import report
from isoformer.models.families import encoder_decoder
from isoformer.models.families.encoder_decoder import Config, Model

Encoded = Sequence[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    tokens: target tokens of a batch, at most. The learning rate goes up to `rate` in `warmup` steps and down with the
    root of the step, as Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762) have it, so it does not depend on
    how long the training goes on. label_smoothing: the share of the target that goes to all pieces alike.
    """

    tokens: int = 256
    rate: float = 1e-3
    warmup: int = 200
    label_smoothing: float = 0.1
    seed: int = 0


# The settings below were chosen on another split of the pairs than the one that is reported.
PIECES = 4000  # at most: what occurs once is not merged, so there are some 2,600
RECIPE = Recipe()
EPOCHS = 25
PAIRS = Path(".assets/django")


@dataclass(frozen=True)
class Corpus:
    """The pairs on both sides of the split, and the subwords learnt from the first."""

    training: list[data.Pair]
    held_out: list[data.Pair]
    tokenizer: Tokenizer

    def encoded(self) -> tuple[Encoded, Encoded]:
        """The token ids of both sides."""
        return data.encode_pairs(self.tokenizer, self.training), data.encode_pairs(self.tokenizer, self.held_out)

    def digest(self) -> str:
        """The SHA-256 of all of it."""
        content = f"{self.training}{self.held_out}{self.tokenizer.to_str()}"
        return hashlib.sha256(content.encode()).hexdigest()


def read_corpus(folder: Path, pieces: int = PIECES) -> Corpus:
    """The pairs below `folder`. Raises what `read_pairs` does."""
    training, held_out = data.split(data.read_pairs(folder))
    return Corpus(training, held_out, data.train_tokenizer(training, pieces))


def configuration(pieces: int, **changes: int | float) -> Config:
    """The original Transformer (https://arxiv.org/abs/1706.03762), small: post-norm, sines, one table of embeddings."""
    shape = {"hidden_size": 192, "num_heads": 4, "num_layers": 2, "intermediate_size": 768, "dropout": 0.2} | changes
    return Config(
        vocab_size=pieces,
        max_positions=256,
        norm_order="post",
        position_kind="sinusoidal",
        tied_embeddings=True,
        embedding_scale=shape["hidden_size"] ** 0.5,
        decoder_start_token_id=data.PAD_ID,
        eos_token_id=data.EOS_ID,
        pad_token_id=data.PAD_ID,
        **shape,  # pyright: ignore[reportArgumentType]
    )


def new_training(config: Config, recipe: Recipe, corpus: Corpus) -> Training[Model]:
    """An untrained model, its weights and its dropout drawn from the recipe's seed.

    The curves are cross-entropy in nats a target token, without label smoothing.
    """
    torch.manual_seed(recipe.seed)
    model = Model(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / recipe.warmup, (recipe.warmup / (step + 1)) ** 0.5)
    )
    training, held_out = corpus.encoded()
    share = recipe.label_smoothing

    def steps(epoch: int) -> Iterator[Step]:
        order = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        for batch in data.batches(training, recipe.tokens, order):
            nats, smooth, real = losses(model, batch)
            loss = ((1 - share) * nats + share * smooth) / real
            yield Step(loss, optimizer, real, "training, with dropout", shown=nats / real)
            schedule.step()

    @torch.no_grad()
    def score() -> dict[str, float]:
        found = [losses(model, batch) for batch in data.batches(held_out, recipe.tokens)]
        return {"held out": sum(nats.item() for nats, _, _ in found) / sum(real for _, _, real in found)}

    parts = {"optimizer": optimizer, "schedule": schedule}
    settings = f"{config} {recipe} {corpus.digest()}"
    count = sum(1 for _ in data.batches(training, recipe.tokens))
    pictures = (Picture("loss.png", "cross-entropy (nats per target token)"),)
    return Training(model, parts, settings, steps, count, pictures, score)


def losses(model: Model, batch: data.Batch) -> tuple[Tensor, Tensor, int]:
    """(sum of -log p(target), sum of -log p averaged over the vocabulary, how many): padding of the target left out."""
    log_p = F.log_softmax(model(batch.source, batch.source_mask, batch.decoder_input), -1)  # (B, L, vocabulary)
    real = batch.target != data.PAD_ID
    nats = -log_p.gather(-1, batch.target[:, :, None])[:, :, 0]
    return nats[real].sum(), -log_p.mean(-1)[real].sum(), int(real.sum())


def ship(training: Training[Model], corpus: Corpus, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    export_package(
        encoder_decoder,
        training.model,
        path,
        console,
        example=__file__,
        weights=f"random, trained for {training.length()}",
        data="Django's translations (BSD-3-Clause)",
        files=data.package_files(corpus.tokenizer),
    )


def main(
    package: Target,
    pairs: Annotated[Path, typer.Option(help="Folder with Django's .po files.")] = PAIRS,
    epochs: Annotated[int, typer.Option(min=1, help="How often every pair is seen, in all.")] = EPOCHS,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains an English–French Transformer on Django's translations and ships it as an ONNX package."""
    with program(package) as (out, err, folder):
        corpus = read_corpus(pairs)
        pieces = corpus.tokenizer.get_vocab_size()
        training = new_training(configuration(pieces), RECIPE, corpus)
        training.start(folder, resume)
        out.print(
            f"{len(corpus.training)} pairs for training, {len(corpus.held_out)} held out; {pieces} subwords; "
            f"{weights(training.model) / 1e6:.1f} million weights; {training.rounds} epochs done",
            soft_wrap=True,
        )
        training.run(folder, err, rounds=epochs, minutes=minutes)
        ship(training, corpus, package, err)
        report(package, training.model, corpus.training, corpus.held_out, corpus.tokenizer, out)
        out.print(f'losses: {folder / "loss.png"}; try: isoformer run {package} "Please enter a valid date."')


if __name__ == "__main__":
    typer.run(main)
