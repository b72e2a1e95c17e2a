"""Trains a small model that draws digits pixel by pixel, ships it as ONNX, and compares both, pixel by pixel.

    python -m examples.train_image_generator demo/digits
    isoformer run demo/digits 3 1 4 1 5 --seed 7 --output digits.png

The images are scikit-learn's 1,797 digits of 8 × 8 pixels: enough to see the way from training to pictures that are
the same wherever they are drawn, not what generated images can be. The checkpoint and the pictures stand beside the
package, in demo/digits-training. Ctrl-C ends the training after the last whole round, a pass over the images, and
`--resume` goes on from there to the very same result.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.svm import SVC
from torch import Tensor

from examples.common import Minutes, Resume, Target, export_package, program, side_by_side
from examples.digits import LABELS, LEVELS, SIDE, SOURCE, Digits, Part, read_digits
from examples.training import Picture, Step, Training, threads, weights
from isoformer.models.families import image_generator
from isoformer.models.families.image_generator import Config, Model
from isoformer.runtime import Session
from isoformer.runtime.binding import Decoder
from isoformer.runtime.generation import Settings
from isoformer.runtime.tasks import generate_image

CONFIG = Config(
    levels=LEVELS,
    labels=LABELS,
    height=SIDE,
    width=SIDE,
    hidden_size=64,
    num_heads=4,
    num_layers=2,
    intermediate_size=256,
)


@dataclass(frozen=True)
class Recipe:
    """How the model is trained; chosen by the bits a pixel of the validation part.

    noise: the share of pixels that the model reads as others than they are, so that it does not lean on each.
    no_class: the share of images without their class. The learning rate goes up to `rate` in a tenth of the rounds
    and down to zero by a cosine.
    """

    rounds: int = 45
    batch: int = 64
    rate: float = 5e-3
    decay: float = 0.1
    noise: float = 0.05
    no_class: float = 0.1
    seed: int = 0


RECIPE = Recipe()
VALIDATION = 180  # digits
ROWS = 8  # of the sheet, a column a class
SAMPLES = 40  # of each class, to be judged
SEED = 7  # of the draws
HISTOGRAM_WEIGHT = 0.3  # what each level counts before any image is seen; chosen on the validation part


def new_training(recipe: Recipe, data: Digits, config: Config = CONFIG) -> Training[Model]:
    """An untrained model, its weights, batches and noise drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = Model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98))
    batches = math.ceil(len(data.training) / recipe.batch)
    total = recipe.rounds * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step / total))
    images, labels = torch.from_numpy(data.training.images), torch.from_numpy(data.training.labels)

    def steps(_: int) -> Iterator[Step]:
        for chosen in torch.randperm(len(images)).split(recipe.batch):
            real = images[chosen]
            hidden = torch.rand(len(chosen)) < recipe.no_class
            tokens = torch.where(hidden, config.no_class, config.levels + labels[chosen])
            other = torch.rand(real.shape) < recipe.noise
            read = torch.where(other, torch.randint(config.levels, real.shape), real)
            loss = bits(model.scores(tokens, read), real)
            yield Step(loss, optimizer, len(chosen), "training (noise in what is read)")
            schedule.step()

    def score() -> dict[str, float]:
        held = data.validation
        return {"validation": bits(in_pytorch(model, held), torch.from_numpy(held.images)).item()}

    parts = {"optimizer": optimizer, "schedule": schedule}
    settings, pictures = f"{config} {recipe} {data.digest()}", (Picture("loss.png", "bits a pixel"),)
    return Training(model, parts, settings, steps, batches, pictures, score, unit="round")


def bits(logits: Tensor, images: Tensor) -> Tensor:
    """Cross-entropy in bits a pixel, of logits (N, pixels, levels)."""
    return F.cross_entropy(logits.flatten(0, 1), images.flatten()) / math.log(2)


def in_pytorch(model: Model, part: Part) -> Tensor:
    """Logits (N, pixels, levels) of the part's own pixels."""
    model.eval()
    with torch.no_grad():
        return model.scores(torch.from_numpy(model.config.levels + part.labels), torch.from_numpy(part.images))


def in_onnx_runtime(session: Session, part: Part) -> Tensor:
    """The same from the package: one pass through its decoder."""
    task = session.package.task
    sequences = np.concatenate([task["levels"] + part.labels[:, None], part.images[:, :-1]], 1)
    decoder = Decoder(session)
    found = [decoder.score(rows.tolist()) for rows in np.array_split(sequences, math.ceil(len(sequences) / 64))]
    return torch.from_numpy(np.stack([row for rows in found for row in rows])[:, :, : task["levels"]])


def histogram_bits(training: Part, part: Part, weight: float = HISTOGRAM_WEIGHT) -> float:
    """Bits a pixel where each pixel is as likely as it was in the training's images of its class."""
    counts = np.full((len(LABELS), SIDE * SIDE, LEVELS), weight)
    np.add.at(counts, (training.labels[:, None], np.arange(SIDE * SIDE), training.images), 1)
    p = counts / counts.sum(-1, keepdims=True)
    return float(-np.log2(p[part.labels[:, None], np.arange(SIDE * SIDE), part.images]).mean())


@torch.no_grad()
def draw_in_pytorch(model: Model, classes: Sequence[int], seed: int) -> np.ndarray:
    """Images (N, pixels) from the numbers that the package's draws take: image n has those of (seed, n).

    All pixels so far are read anew for each pixel: no cache, so the package's cache is compared with none.
    """
    model.eval()
    pixels = model.config.height * model.config.width
    uniform = torch.from_numpy(np.stack([np.random.default_rng([seed, n]).random(pixels) for n in range(len(classes))]))
    tokens, drawn = model.config.levels + torch.tensor(classes), torch.zeros(len(classes), 0, dtype=torch.int64)
    for pixel in range(pixels):
        known = F.pad(drawn, (0, 1))  # what stands at the pixel itself is not read
        p = model.scores(tokens, known)[:, -1].double().softmax(-1).cumsum(-1)
        found = torch.searchsorted(p, uniform[:, pixel, None] * p[:, -1:], right=True)
        drawn = torch.cat([drawn, found], 1)
    return drawn.numpy()


def report(package: Path, model: Model, data: Digits, folder: Path, console: Console) -> dict[str, float]:
    """Prints and returns what there is to say: bits a pixel, equal pixels, and whether the drawn digits are told."""
    session = Session.fastest(package)
    test = torch.from_numpy(data.test.images)
    ours, theirs = in_pytorch(model, data.test), in_onnx_runtime(session, data.test)
    likeliest = [logits.argmax(-1).numpy() for logits in (ours, theirs)]
    values = [bits(logits, test).item() for logits in (ours, theirs)]
    baseline = histogram_bits(data.training, data.test)
    lines = {"bits a pixel": (f"{values[0]:.6f}", f"{values[1]:.6f}")}
    console.print(side_by_side(lines, likeliest[0], likeliest[1], "Test images, the likeliest level of every pixel"))
    console.print(f"A histogram of each pixel's levels given the class: {baseline:.3f} bits a pixel.", highlight=False)

    classes = list(range(len(LABELS))) * SAMPLES
    texts = [LABELS[number] for number in classes]
    found = generate_image.run(session, texts, settings=Settings(seed=SEED))
    drawn = np.array([one["pixels"] for one in found]).reshape(len(found), -1)
    with threads():
        again = draw_in_pytorch(model, classes, SEED)
    same = float((drawn == again).mean())
    whole = int((drawn == again).all(1).sum())
    console.print(
        f"{len(drawn)} digits drawn with seed {SEED}: {same:.2%} of the pixels the same from PyTorch, {whole} images "
        "whole.",
        highlight=False,
    )
    judge = SVC(C=10).fit(data.training.images, data.training.labels)
    told = float((judge.predict(drawn) == classes).mean())
    real = float(judge.score(data.test.images, data.test.labels))
    console.print(
        f"A support vector machine that learnt the same training images names the class that was asked for in "
        f"{told:.1%} of the drawn digits, and in {real:.1%} of the real test images.",
        highlight=False,
    )
    sheet = folder / "samples.png"
    generate_image.run(session, LABELS * ROWS, settings=Settings(seed=SEED), output=sheet)
    console.print(f"samples: {sheet}; losses: {folder / 'loss.png'}", highlight=False, soft_wrap=True)
    return {
        "bits": values[1],
        "bits in PyTorch": values[0],
        "histogram": baseline,
        "same": same,
        "told": told,
        "real": real,
    }


def _share_of_rate(done: float) -> float:
    return min(done / 0.1, 0.5 + 0.5 * math.cos(math.pi * min(done, 1)))


def ship(training: Training[Model], path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    origin = f"random, trained for {training.length()}"
    export_package(image_generator, training.model, path, console, example=__file__, weights=origin, data=SOURCE)


def main(
    package: Target,
    rounds: Annotated[int, typer.Option(min=1, help="How often every image is seen, in all.")] = RECIPE.rounds,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains a model that draws digits and ships it as an ONNX package."""
    with program(package, "round") as (out, err, folder):
        data = read_digits(VALIDATION)
        training = new_training(RECIPE, data)
        training.start(folder, resume)
        out.print(f"{len(data.training)} digits for training; {weights(training.model):,} weights", highlight=False)
        training.run(folder, err, rounds=rounds, minutes=minutes)
        ship(training, package, err)
        report(package, training.model, data, folder, out)


if __name__ == "__main__":
    typer.run(main)
