"""Trains a small English–French Transformer from nothing, ships it as ONNX, and compares both on held-out sentences.

    make assets
    python -m examples.train_translation demo/translation

The pairs are the translations of Django's own texts, some 800: the model learns the training sentences by heart and
does what it can with the others. It shows the way from training to a package, not what translation can be.

    translation_data.py    .po files → pairs → split → subwords → batches
    training.py            the loop, the checkpoint, greedy search in PyTorch
    translation_report.py  the loss's picture, BLEU and chrF beside each other
    train_translation.py   this file: the settings, and one after the other

The checkpoint and the picture stand beside the package, in demo/translation-training. Ctrl-C ends the training after
the last whole epoch, and `--resume` goes on from there to the very same result.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tokenizers import Tokenizer

from examples import translation_data as data
from examples.common import export_package, one_thread, progress_bar
from examples.training import Encoded, Recipe, Trainer
from examples.translation_report import draw_losses, report
from isoformer.export.errors import ExportError
from isoformer.export.package import refuse_taken
from isoformer.models.families import encoder_decoder
from isoformer.models.families.encoder_decoder import Config, Model

# The settings below were chosen on another split of the pairs than the one that is reported.
PIECES = 4000  # at most: what occurs once is not merged, so there are some 2,600
RECIPE = Recipe(tokens=256, rate=1e-3, warmup=200, label_smoothing=0.1)
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


def new_trainer(config: Config, recipe: Recipe, corpus: Corpus) -> Trainer:
    """An untrained model, its weights and its dropout drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return Trainer(Model(config), recipe, corpus.digest())


def train(trainer: Trainer, corpus: Corpus, folder: Path, *, epochs: int, minutes: float, console: Console) -> None:
    """Trains until `epochs` are done in all, or `minutes` have passed and the epoch is over.

    Each epoch leaves folder/checkpoint.pt and folder/loss.png.
    """
    training, held_out = corpus.encoded()
    steps = sum(1 for _ in data.batches(training, trainer.recipe.tokens))
    end = time.monotonic() + 60 * minutes
    trainer.save(folder / "checkpoint.pt")
    with one_thread(), progress_bar(console) as bar:
        line = bar.add_task("training", total=steps * epochs, completed=steps * trainer.epoch)
        while trainer.epoch < epochs and time.monotonic() < end:
            trainer.train_epoch(training, held_out, lambda: bar.advance(line))
            trainer.save(folder / "checkpoint.pt")
            draw_losses(trainer.losses, folder / "loss.png")
            last, held = trainer.losses.training[-1], trainer.losses.held_out[-1]
            bar.update(
                line,
                completed=steps * trainer.epoch,
                description=f"epoch {trainer.epoch}: {last:.2f}, held out {held:.2f} nats/token",
            )


def ship(trainer: Trainer, corpus: Corpus, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    config = trainer.model.config
    export_package(
        trainer.model,
        encoder_decoder.signature(config),
        path,
        console,
        task=encoder_decoder.task(config),
        files=data.package_files(corpus.tokenizer),
        provenance={
            "source": {"name": "examples/train_translation.py", "data": "Django's translations (BSD-3-Clause)"}
        },
    )


def main(
    package: Annotated[Path, typer.Argument(help="Where the package goes; one that stands there is replaced.")],
    pairs: Annotated[Path, typer.Option(help="Folder with Django's .po files.")] = PAIRS,
    epochs: Annotated[int, typer.Option(min=1, help="How often every pair is seen, in all.")] = EPOCHS,
    minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this, and end with the epoch.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an earlier run.")] = False,
) -> None:
    """Trains an English–French Transformer on Django's translations and ships it as an ONNX package."""
    out, err = Console(), Console(stderr=True)
    folder = package.with_name(f"{package.name}-training")
    try:
        refuse_taken(package, force=True)
        corpus = read_corpus(pairs)
        trainer = new_trainer(configuration(corpus.tokenizer.get_vocab_size()), RECIPE, corpus)
        if resume:
            trainer.load(folder / "checkpoint.pt")
        folder.mkdir(parents=True, exist_ok=True)
        out.print(describe(trainer, corpus), soft_wrap=True)
        train(trainer, corpus, folder, epochs=epochs, minutes=minutes, console=err)
        ship(trainer, corpus, package, err)
    except (ExportError, OSError, ValueError) as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print(f"stopped; --resume goes on from the last whole epoch ({folder / 'checkpoint.pt'})", soft_wrap=True)
        raise typer.Exit(130) from None
    report(package, trainer.model, corpus.training, corpus.held_out, corpus.tokenizer, out)
    out.print(f'losses: {folder / "loss.png"}; try: isoformer run {package} "Please enter a valid date."')


def describe(trainer: Trainer, corpus: Corpus) -> str:
    """One line on what is trained."""
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    return (
        f"{len(corpus.training)} pairs for training, {len(corpus.held_out)} held out; "
        f"{corpus.tokenizer.get_vocab_size()} subwords; {weights / 1e6:.1f} million weights; "
        f"{trainer.epoch} epochs done"
    )


if __name__ == "__main__":
    typer.run(main)
