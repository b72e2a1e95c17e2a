"""Trains a small Vision Transformer on scikit-learn's digits, ships it as ONNX, and compares both on the test part.

    python -m examples.train_vision demo/vision

    digits.py         the pictures, the split, what a batch is
    train_vision.py   this file: the settings, and one after the other

The checkpoint and the pictures stand beside the package, in demo/vision-training. Ctrl-C ends the training after the
last whole epoch, and `--resume` goes on from there to the very same result.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from examples.common import Minutes, Resume, Target, export_package, new_figure, program, side_by_side
from examples.digits import NAMES, SOURCE, Digits, Part, Recipe, naming, read_digits
from examples.training import Training, weights
from isoformer.models.families import vision
from isoformer.models.families.vision import Config, Model
from isoformer.models.images import Preprocessing
from isoformer.runtime import Graphs

# The settings below were chosen by the validation part.
RECIPE = Recipe()
VALIDATION = 360  # digits
CONFIG = Config(
    hidden_size=48,
    num_heads=4,
    num_layers=3,
    intermediate_size=96,
    image_size=(8, 8),
    patch_size=2,
    num_channels=1,
    dropout=0.1,
    task="classify-image",
    labels=NAMES,
    preprocessing=Preprocessing((8, 8)),
)


def new_training(recipe: Recipe, digits: Digits, config: Config = CONFIG) -> Training[Model]:
    """An untrained model, its weights and its dropout drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = Model(config)

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(model.preprocessor(pixels))["logits"], labels)

    return naming(model, loss, lambda part: predict(model, part), recipe, digits)


@torch.no_grad()
def predict(model: Model, part: Part) -> np.ndarray:
    """The class of each picture, in PyTorch."""
    return model.eval()(model.preprocessor(torch.from_numpy(part.pixels)))["logits"].argmax(-1).numpy()


def predict_in_runtime(package: Path, part: Part) -> np.ndarray:
    """The class of each picture, from the package: its preprocessor, then its model."""
    graphs = Graphs(package)
    values = graphs["preprocessor"].run({"pixels": part.pixels})["pixel_values"]
    return graphs["model"].run({"pixel_values": values})["logits"].argmax(-1)


def baselines(digits: Digits) -> dict[str, float]:
    """Test accuracy of scikit-learn's classifiers on the same pixels, trained on the same part."""
    found: dict[str, Any] = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "3 nearest neighbours": KNeighborsClassifier(3),
    }
    training, test = (part.pixels.reshape(-1, 64) / 255 for part in (digits.training, digits.test))
    return {
        name: float(accuracy_score(digits.test.labels, kind.fit(training, digits.training.labels).predict(test)))
        for name, kind in found.items()
    }


def draw_predictions(part: Part, predicted: np.ndarray, path: Path, count: int = 40) -> None:
    """The wrong ones first, then others, each with what the model says, as a PNG."""
    order = np.argsort(predicted == part.labels, kind="stable")[:count]
    pixels, figure = part.pixels, new_figure(10, 1.35 * -(-len(order) // 8), dpi=100)
    for number, index in enumerate(order, 1):
        axes = figure.add_subplot(-(-len(order) // 8), 8, number)
        axes.imshow(pixels[index, :, :, 0], cmap="gray_r", vmin=0, vmax=255)
        wrong = predicted[index] != part.labels[index]
        title = f"{NAMES[predicted[index]]}" + (f", not {NAMES[part.labels[index]]}" if wrong else "")
        axes.set_title(title, fontsize=8, color="tab:red" if wrong else "black")
        axes.set_axis_off()
    figure.savefig(path)


def report(package: Path, model: Model, digits: Digits, folder: Path, console: Console) -> None:
    """Test accuracy from PyTorch and ONNX Runtime, beside the baselines; the pictures and one file to try."""
    from PIL import Image

    ours, theirs = predict(model, digits.test), predict_in_runtime(package, digits.test)
    shares = tuple(f"{accuracy_score(digits.test.labels, found):.2%}" for found in (ours, theirs))
    console.print(side_by_side({"test accuracy": (shares[0], shares[1])}, ours, theirs, "digits, test part"))
    for name, share in baselines(digits).items():
        console.print(f"{name} (scikit-learn): {share:.2%}", highlight=False)
    draw_predictions(digits.test, theirs, folder / "predictions.png")
    Image.fromarray(digits.test.pixels[0, :, :, 0]).save(folder / "digit.png")
    console.print(
        f"pictures: {folder}; try: isoformer run {package} {folder / 'digit.png'} (a {NAMES[digits.test.labels[0]]})",
        soft_wrap=True,
    )


def ship(training: Training[Model], path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    origin = f"random, trained for {training.length()}"
    export_package(vision, training.model, path, console, example=__file__, weights=origin, data=SOURCE)


def main(
    package: Target,
    epochs: Annotated[int, typer.Option(min=1, help="How often every picture is seen, in all.")] = RECIPE.epochs,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains a Vision Transformer on handwritten digits and ships it as an ONNX package."""
    with program(package) as (out, err, folder):
        digits = read_digits(VALIDATION)
        training = new_training(Recipe(epochs=epochs), digits)
        training.start(folder, resume)
        counts = f"{len(digits.training)} digits for training, {weights(training.model):,} weights"
        out.print(f"{counts}, {training.rounds} epochs done")
        training.run(folder, err, rounds=epochs, minutes=minutes)
        ship(training, package, err)
        report(package, training.model, digits, folder, out)


if __name__ == "__main__":
    typer.run(main)
