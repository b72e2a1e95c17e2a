"""Trains a generator and a discriminator of digits against each other, ships both as ONNX, and compares them.

    python -m examples.train_gan demo/gan
    isoformer run demo/gan 1 2 3 4 5 --output digits.png

The images are scikit-learn's 1,797 digits of 8 × 8 pixels. The loss is the non-saturating one (Goodfellow et al. 2014,
https://arxiv.org/abs/1406.2661) with a penalty on the discriminator's gradient at real images (R1, Mescheder et al.
2018, https://arxiv.org/abs/1801.04406); images are moved by a pixel before they are judged (Zhao et al. 2020,
https://arxiv.org/abs/2006.10738); what is shipped is the running mean of the generator's weights.

The checkpoint and the pictures stand beside the package, in demo/gan-training. Ctrl-C ends the training after the last
whole round, and `--resume` goes on from there to the very same result.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.common import Minutes, Resume, Target, export_package, program, table
from examples.digits import LEVELS, SIDE, SOURCE, Digits, Part, read_digits
from examples.training import Picture, Step, Training, weights
from isoformer.models.families import gan
from isoformer.models.families.gan import DISCRIMINATOR, GENERATOR, Config, Model
from isoformer.runtime import Graphs
from isoformer.runtime.tasks import generate_image

CONFIG = Config(
    channels=1,
    patch_size=2,
    grid_rows=SIDE // 2,
    grid_columns=SIDE // 2,
    latent_size=32,
    hidden_size=48,
    num_heads=4,
    num_layers=2,
    intermediate_size=96,
    max_grid=16,
)


@dataclass(frozen=True)
class Recipe:
    """How the two are trained; chosen by `distances` from the validation part.

    penalty: half of it is what R1 counts, which is computed in every `every`-th step and then counts so many times.
    average: the share that the running mean of the generator's weights keeps at each step.
    """

    rounds: int = 100
    steps: int = 40
    batch: int = 32
    rate: float = 1e-3
    discriminator_rate: float = 2e-3
    penalty: float = 0.3
    every: int = 4
    average: float = 0.998
    seed: int = 0


RECIPE = Recipe()
VALIDATION = 180  # digits
SHEET = 80  # pictures of the sheet, of the seeds 0, 1, …
COMPARED = 1000  # pictures that are compared between the runtimes


class Networks:
    """The two that are trained, and the one that is shipped: the mean generator and the discriminator."""

    def __init__(self, config: Config, seed: int) -> None:
        torch.manual_seed(seed)
        self.trained = Model(config)
        self.shipped = copy.deepcopy(self.trained).eval().requires_grad_(False)
        self.shipped.discriminator = self.trained.discriminator

    @torch.no_grad()
    def average(self, share: float) -> None:
        """Moves the shipped generator's weights towards the trained one's."""
        weights = (self.shipped.generator.parameters(), self.trained.generator.parameters())
        for mean, weight in zip(*weights, strict=True):
            mean.lerp_(weight, 1 - share)


def new_training(networks: Networks, recipe: Recipe, data: Digits) -> Training[Model]:
    """The training of new networks; a round is `recipe.steps` steps of each."""
    model = networks.trained
    generators, discriminators = (
        torch.optim.Adam(part.parameters(), lr=rate, betas=(0.0, 0.99))
        for part, rate in ((model.generator, recipe.rate), (model.discriminator, recipe.discriminator_rate))
    )
    images = to_pixel_values(data.training)

    def real() -> Tensor:
        return moved(images[torch.randint(len(images), (recipe.batch,))])

    def fake() -> Tensor:
        return moved(model.generate(torch.randn(recipe.batch, model.config.latent_size)))

    def steepness() -> Tensor:
        x = real().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the one whose gradient has a gradient
            (slope,) = torch.autograd.grad(model.score(x).sum(), x, create_graph=True)
        return slope.square().sum((1, 2, 3)).mean()

    def told_apart() -> Tensor:
        with torch.no_grad():
            both = torch.cat([real(), fake()])
        scores = model.score(both)
        return F.softplus(-scores[: recipe.batch]).mean() + F.softplus(scores[recipe.batch :]).mean()

    def steps(_: int) -> Iterator[Step]:
        for step in range(recipe.steps):
            if step % recipe.every == 0:
                penalty = steepness()
                loss = recipe.every * recipe.penalty / 2 * penalty
                yield Step(loss, discriminators, curve="squared gradient (R1)", shown=penalty)
            yield Step(told_apart(), discriminators, curve="discriminator")
            yield Step(F.softplus(-model.score(fake())).mean(), generators, curve="generator")
            networks.average(recipe.average)

    parts: dict[str, Any] = {"generators": generators, "discriminators": discriminators}
    parts["mean generator"] = networks.shipped.generator
    settings = f"{model.config} {recipe} {data.digest()}"
    count = 2 * recipe.steps + math.ceil(recipe.steps / recipe.every)
    pictures = (Picture("loss.png", "loss"),)
    return Training(model, parts, settings, steps, count, pictures, unit="round", clip=None)


def moved(pixel_values: Tensor) -> Tensor:
    """Each image (B, channels, H, W) by -1, 0 or 1 pixel down and across; dark pixels come in."""
    batch, _, height, width = pixel_values.shape
    wide = F.pad(pixel_values, (1, 1, 1, 1), value=-1.0)
    down, across = (torch.arange(size) + torch.randint(3, (batch, 1)) for size in (height, width))
    rows = torch.arange(batch)[:, None, None]
    return wide[rows, :, down[:, :, None], across[:, None]].permute(0, 3, 1, 2)


def to_pixel_values(part: Part) -> Tensor:
    """Levels as the networks have them: (N, 1, 8, 8), -1 … 1."""
    return torch.from_numpy(part.images).reshape(-1, 1, SIDE, SIDE).float() / ((LEVELS - 1) / 2) - 1


def distances(drawn: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """How far images (N, pixels) are from real ones, levels 0 … 1.

    Fréchet: |difference of means|² + trace(C + D - 2 (C D)^(1/2)) of the covariances, which sees no more than these:
    0 where both are equal. Neighbours: how often an image's nearest neighbour is of its own kind; 50 % where nothing
    tells the kinds apart (Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545).
    """
    count = min(len(drawn), len(real))
    drawn, real = drawn[:count], real[:count]
    one, other = np.cov(drawn.T), np.cov(real.T)
    product = np.sqrt(np.linalg.eigvals(one @ other).real.clip(min=0)).sum()  # the trace of its root
    frechet = np.square(drawn.mean(0) - real.mean(0)).sum() + np.trace(one + other) - 2 * product
    both, kinds = np.concatenate([drawn, real]), np.repeat([0, 1], count)
    nearest = NearestNeighbors(n_neighbors=2).fit(both).kneighbors(both, return_distance=False)[:, 1]
    return {"Fréchet": float(frechet), "neighbours": float((kinds[nearest] == kinds).mean())}


def judge(drawn: np.ndarray, training: Part, held_out: Part, seed: int = 0) -> dict[str, dict[str, float]]:
    """`distances` from the held-out images, of what was drawn and, to compare with, of what took no network."""
    rng = np.random.default_rng(seed)
    images, real = training.images / (LEVELS - 1), held_out.images / (LEVELS - 1)
    count = len(real)
    kinds = {
        "drawn by the generator": drawn.reshape(len(drawn), -1),
        "training images": images[rng.permutation(len(images))[:count]],
        "normal, with the training's mean and covariance": rng.multivariate_normal(
            images.mean(0), np.cov(images.T), count
        ).clip(0, 1),
        "each pixel of another training image": rng.permuted(images, axis=0)[:count],
        "uniform noise": rng.random((count, images.shape[1])),
    }
    return {name: distances(values, real) for name, values in kinds.items()}


def report(package: Path, model: Model, data: Digits, folder: Path, console: Console) -> dict[str, float]:
    """Prints and returns how alike the runtimes are, and prints how alike drawn and real digits are."""
    graphs = Graphs(package)
    task = graphs.package.task
    noise = generate_image.noise(range(COMPARED), task["latent_size"])
    with torch.no_grad():
        ours = model.generate(torch.from_numpy(noise))
        judged = model.score(ours).numpy()
    theirs = graphs[GENERATOR].run(generate_image.inputs(task, noise))["pixel_values"]
    whole = np.ones((COMPARED, model.config.grid_rows, model.config.grid_columns), np.int64)
    scores = graphs[DISCRIMINATOR].run({"pixel_values": ours.numpy(), "patch_mask": whole})["scores"]
    pixels = [generate_image.to_uint8(values) for values in (ours.numpy(), theirs)]
    found = {
        "largest difference of a pixel": float(np.abs(ours.numpy() - theirs).max()),
        "same 8-bit pixels": float((pixels[0] == pixels[1]).mean()),
        "largest difference of a score": float(np.abs(judged - scores).max()),
        "same verdict": float(((judged > 0) == (scores > 0)).mean()),
    }
    console.print(
        f"{COMPARED} images of the same noise from PyTorch and ONNX Runtime: pixels (-1 … 1) differ by "
        f"{found['largest difference of a pixel']:.1e} at most, {found['same 8-bit pixels']:.3%} of the 8-bit pixels "
        f"are the same. The discriminator's scores of them (from {judged.min():.2f} to {judged.max():.2f}) differ by "
        f"{found['largest difference of a score']:.1e} at most; {found['same verdict']:.2%} have the same sign.",
        highlight=False,
    )
    drawn = pixels[1][: len(data.test)] / 255
    judged_by = ("Fréchet distance", "nearest neighbour of its own kind")
    rows = [
        (name, f"{row['Fréchet']:.3f}", f"{row['neighbours']:.1%}")
        for name, row in judge(drawn, data.training, data.test).items()
    ]
    console.print(table(f"Beside {len(data.test)} test images", judged_by, rows))
    console.print(
        "Fréchet sees means and covariances of pixels alone, so a normal distribution that has them does well; by "
        "their nearest neighbours images are told apart more sharply (50 % is the best). Neither says whether a "
        "picture is a good digit: see the sheet.",
        highlight=False,
    )
    sheet = folder / "samples.png"
    generate_image.run(graphs, [str(seed) for seed in range(SHEET)], output=sheet)
    console.print(f"samples: {sheet}; losses: {folder / 'loss.png'}", highlight=False, soft_wrap=True)
    return found


def ship(networks: Networks, training: Training[Model], path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    origin = f"random, trained for {training.length()}; the generator's running mean"
    export_package(gan, networks.shipped, path, console, example=__file__, weights=origin, data=SOURCE)


def main(
    package: Target,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the training, in all.")] = RECIPE.rounds,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains a GAN of two Transformers on digits and ships it as an ONNX package."""
    with program(package, "round") as (out, err, folder):
        data, networks = read_digits(VALIDATION), Networks(CONFIG, RECIPE.seed)
        training = new_training(networks, RECIPE, data)
        training.start(folder, resume)
        counts = [weights(part) for part in (networks.trained.generator, networks.trained.discriminator)]
        out.print(
            f"{len(data.training)} digits for training; generator {counts[0]:,}, discriminator {counts[1]:,} weights",
            highlight=False,
        )
        training.run(folder, err, rounds=rounds, minutes=minutes)
        ship(networks, training, package, err)
        report(package, networks.shipped, data, folder, out)


if __name__ == "__main__":
    typer.run(main)
