"""Trains a small Vision Transformer on scikit-learn's digits, ships it as ONNX, and compares both on the test part.

    python -m examples.train_vision demo/vision

    digits.py         the pictures, the split, the training loop
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from examples.common import export_package, side_by_side
from examples.digits import NAMES, Digits, Part, Recipe, Trainer, read_digits, run_epochs
from isoformer.export.errors import ExportError
from isoformer.export.package import refuse_taken
from isoformer.models.families import vision
from isoformer.models.families.vision import Config, Model
from isoformer.models.images import Preprocessing
from isoformer.runtime import Graphs

# The settings below were chosen by the validation part.
RECIPE = Recipe()
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


def new_trainer(recipe: Recipe, digits: Digits, config: Config = CONFIG) -> Trainer[Model]:
    """An untrained model, its weights and its dropout drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = Model(config)

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(model.preprocessor(pixels))["logits"], labels)

    return Trainer(model, loss, recipe, digits.digest())


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
    flat = {name: getattr(digits, name).pixels.reshape(-1, 64) / 255 for name in ("training", "test")}
    return {
        name: float(
            accuracy_score(digits.test.labels, kind.fit(flat["training"], digits.training.labels).predict(flat["test"]))
        )
        for name, kind in found.items()
    }


def draw_predictions(part: Part, predicted: np.ndarray, path: Path, count: int = 40) -> None:
    """The wrong ones first, then others, each with what the model says, as a PNG."""
    order = np.argsort(predicted == part.labels, kind="stable")[:count]
    figure = Figure(figsize=(10, 1.35 * -(-len(order) // 8)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for number, index in enumerate(order, 1):
        axes = figure.add_subplot(-(-len(order) // 8), 8, number)
        axes.imshow(part.pixels[index, :, :, 0], cmap="gray_r", vmin=0, vmax=255)
        wrong = predicted[index] != part.labels[index]
        title = f"{NAMES[predicted[index]]}" + (f", not {NAMES[part.labels[index]]}" if wrong else "")
        axes.set_title(title, fontsize=8, color="tab:red" if wrong else "black")
        axes.set_axis_off()
    figure.savefig(path)


def report(package: Path, trainer: Trainer[Model], digits: Digits, folder: Path, console: Console) -> None:
    """Test accuracy from PyTorch and ONNX Runtime, beside the baselines; the pictures and one file to try."""
    from PIL import Image

    ours, theirs = predict(trainer.model, digits.test), predict_in_runtime(package, digits.test)
    shares = tuple(f"{accuracy_score(digits.test.labels, found):.2%}" for found in (ours, theirs))
    console.print(side_by_side({"test accuracy": (shares[0], shares[1])}, ours, theirs, "digits, test part"))
    for name, share in baselines(digits).items():
        console.print(f"{name} (scikit-learn): {share:.2%}", highlight=False)
    draw_predictions(digits.test, theirs, folder / "predictions.png")
    trainer.draw(folder / "training.png")
    Image.fromarray(digits.test.pixels[0, :, :, 0]).save(folder / "digit.png")
    console.print(
        f"pictures: {folder}; try: isoformer run {package} {folder / 'digit.png'} (a {NAMES[digits.test.labels[0]]})",
        soft_wrap=True,
    )


def ship(trainer: Trainer[Model], path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    config = trainer.model.config
    export_package(
        trainer.model,
        vision.signature(config),
        path,
        console,
        task=vision.task(config),
        provenance={"source": "examples/train_vision.py", "data": "scikit-learn's digits (UCI, CC BY 4.0)"},
    )


def main(
    package: Annotated[Path, typer.Argument(help="Where the package goes; one that stands there is replaced.")],
    epochs: Annotated[int, typer.Option(min=1, help="How often every picture is seen, in all.")] = RECIPE.epochs,
    minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this, and end with the epoch.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an earlier run.")] = False,
) -> None:
    """Trains a Vision Transformer on handwritten digits and ships it as an ONNX package."""
    out, err = Console(), Console(stderr=True)
    folder = package.with_name(f"{package.name}-training")
    try:
        refuse_taken(package, force=True)
        digits = read_digits()
        trainer = new_trainer(Recipe(epochs=epochs), digits)
        if resume:
            trainer.load(folder / "checkpoint.pt")
        folder.mkdir(parents=True, exist_ok=True)
        weights = sum(parameter.numel() for parameter in trainer.model.parameters())
        out.print(
            f"{len(digits.training.labels)} digits for training, {weights:,} weights, {trainer.epoch} epochs done"
        )
        part = digits.validation
        run_epochs(
            trainer,
            digits.training,
            lambda: float((predict(trainer.model, part) == part.labels).mean()),
            folder,
            minutes=minutes,
            console=err,
        )
        ship(trainer, package, err)
    except (ExportError, OSError, ValueError) as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print(f"stopped; --resume goes on from the last whole epoch ({folder / 'checkpoint.pt'})", soft_wrap=True)
        raise typer.Exit(130) from None
    report(package, trainer, digits, folder, out)


if __name__ == "__main__":
    typer.run(main)
