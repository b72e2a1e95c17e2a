"""Trains a small model that draws digits pixel by pixel, ships it as ONNX, and compares both, pixel by pixel.

    python -m examples.train_image_generator demo/digits
    isoformer run demo/digits 3 1 4 1 5 --seed 7 --output digits.png

The images are scikit-learn's 1,797 digits of 8 × 8 pixels: enough to see the way from training to pictures that are
the same wherever they are drawn, not what generated images can be. The checkpoint and the pictures stand beside the
package, in demo/digits-training. Ctrl-C ends the training after the last whole round, a pass over the images, and
`--resume` goes on from there to the very same result.
"""

import math
from collections.abc import Sequence
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

from examples import digit_levels, loop
from examples.common import export_package, one_thread, side_by_side
from examples.digit_levels import LABELS, LEVELS, SIDE, Digits, Part
from isoformer.export.package import refuse_taken
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
ROWS = 8  # of the sheet, a column a class
SAMPLES = 40  # of each class, to be judged
SEED = 7  # of the draws
HISTOGRAM_WEIGHT = 0.3  # what each level counts before any image is seen; chosen on the validation part


def new_model(config: Config, seed: int) -> Model:
    """An untrained model; PyTorch's random numbers begin with the seed."""
    torch.manual_seed(seed)
    return Model(config)


def new_training(model: Model, recipe: Recipe, data: Digits) -> loop.Training:
    """The training of a new model."""
    config = model.config
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98))
    steps = recipe.rounds * math.ceil(len(data.training) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step / steps))
    images, classes = (torch.from_numpy(array) for array in (data.training.images, data.training.classes))

    def one_round() -> dict[str, float]:
        model.train()
        total = 0.0
        for chosen in torch.randperm(len(images)).split(recipe.batch):
            real = images[chosen]
            hidden = torch.rand(len(chosen)) < recipe.no_class
            tokens = torch.where(hidden, config.no_class, config.levels + classes[chosen])
            other = torch.rand(real.shape) < recipe.noise
            read = torch.where(other, torch.randint(config.levels, real.shape), real)
            loss = bits(model.scores(tokens, read), real)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        with torch.no_grad():
            held = bits(in_pytorch(model, data.validation), torch.from_numpy(data.validation.images)).item()
        return {"training (noise in what is read)": total / len(images), "validation": held}

    return loop.Training(
        {"model": model},
        {"model": optimizer},
        one_round,
        f"{config} {recipe} {data.digest()}",
        {"model": schedule},
    )


def bits(logits: Tensor, images: Tensor) -> Tensor:
    """Cross-entropy in bits a pixel, of logits (N, pixels, levels)."""
    return F.cross_entropy(logits.flatten(0, 1), images.flatten()) / math.log(2)


def in_pytorch(model: Model, part: Part) -> Tensor:
    """Logits (N, pixels, levels) of the part's own pixels."""
    model.eval()
    with torch.no_grad():
        return model.scores(torch.from_numpy(model.config.levels + part.classes), torch.from_numpy(part.images))


def in_onnx_runtime(session: Session, part: Part) -> Tensor:
    """The same from the package: one pass through its decoder."""
    task = session.package.task
    sequences = np.concatenate([task["levels"] + part.classes[:, None], part.images[:, :-1]], 1)
    decoder = Decoder(session)
    found = [decoder.score(rows.tolist()) for rows in np.array_split(sequences, math.ceil(len(sequences) / 64))]
    return torch.from_numpy(np.stack([row for rows in found for row in rows])[:, :, : task["levels"]])


def histogram_bits(training: Part, part: Part, weight: float = HISTOGRAM_WEIGHT) -> float:
    """Bits a pixel where each pixel is as likely as it was in the training's images of its class."""
    counts = np.full((len(LABELS), SIDE * SIDE, LEVELS), weight)
    np.add.at(counts, (training.classes[:, None], np.arange(SIDE * SIDE), training.images), 1)
    p = counts / counts.sum(-1, keepdims=True)
    return float(-np.log2(p[part.classes[:, None], np.arange(SIDE * SIDE), part.images]).mean())


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
    with one_thread():
        again = draw_in_pytorch(model, classes, SEED)
    same = float((drawn == again).mean())
    whole = int((drawn == again).all(1).sum())
    console.print(
        f"{len(drawn)} digits drawn with seed {SEED}: {same:.2%} of the pixels the same from PyTorch, {whole} images "
        "whole.",
        highlight=False,
    )
    judge = SVC(C=10).fit(data.training.images, data.training.classes)
    told = float((judge.predict(drawn) == classes).mean())
    real = float(judge.score(data.test.images, data.test.classes))
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


def main(
    package: Annotated[Path, typer.Argument(help="Where the package goes; one that stands there is replaced.")],
    rounds: Annotated[int, typer.Option(min=1, help="How often every image is seen, in all.")] = RECIPE.rounds,
    minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this, and end with the round.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an earlier run.")] = False,
) -> None:
    """Trains a model that draws digits and ships it as an ONNX package."""
    out, err = Console(), Console(stderr=True)
    folder = package.with_name(f"{package.name}-training")
    with loop.one_line_errors(err, folder / "checkpoint.pt"):
        refuse_taken(package, force=True)
        data = digit_levels.read()
        model = new_model(CONFIG, RECIPE.seed)
        training = new_training(model, RECIPE, data)
        out.print(f"{len(data.training)} digits for training; {_weights(model)} weights", highlight=False)
        options = {"rounds": rounds, "minutes": minutes, "resume": resume, "console": err}
        loop.train(training, folder, ylabel="bits a pixel", **options)
        export_package(
            model,
            image_generator.signature(CONFIG),
            package,
            err,
            task=image_generator.task(CONFIG),
            provenance={"source": "examples/train_image_generator.py", "data": "scikit-learn's digits (BSD-3-Clause)"},
        )
        report(package, model, data, folder, out)


def _weights(model: Model) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


if __name__ == "__main__":
    typer.run(main)
