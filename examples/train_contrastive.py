"""Trains a tiny CLIP on scikit-learn's digits and captions, ships it as ONNX, and names digits by their captions.

    python -m examples.train_contrastive demo/clip

    digits.py              the pictures, the split, the training loop
    train_contrastive.py   this file: the captions, the loss, zero-shot classes

A picture is learned with one of several captions ("the digit three", "a handwritten 3"); on the test part it is given
the class whose caption, one that no training step used, is nearest. The checkpoint stands in demo/clip-training;
`--resume` goes on from it.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from examples.common import export_package, side_by_side
from examples.digits import NAMES, Digits, Part, Recipe, Trainer, read_digits, run_epochs
from isoformer.export.errors import ExportError
from isoformer.export.package import refuse_taken
from isoformer.models.checkpoints import TextFile
from isoformer.models.families import contrastive, vision
from isoformer.models.families.contrastive import Config, Model
from isoformer.models.images import Preprocessing
from isoformer.runtime import Graphs

TEMPLATES = ("the digit {}", "a picture of the number {}", "a handwritten {}", "{}")
HELD_OUT = "a picture of the digit {}"  # its words are known, the sentence is not
RECIPE = Recipe(epochs=80)
EOS = "[EOS]"


def make_tokenizer() -> Tokenizer:
    """A token a word of the captions, and the one that ends a text."""
    words = sorted({word for template in TEMPLATES for name in NAMES for word in template.format(name).split()})
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", EOS, "[UNK]", *words])}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens(["[PAD]", EOS, "[UNK]"])
    made.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])  # pyright: ignore[reportAttributeAccessIssue]
    made.enable_padding(pad_id=0, pad_token="[PAD]")  # noqa: S106
    return made


def encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, padded on the right."""
    encodings = tokenizer.encode_batch(texts)
    return torch.tensor([e.ids for e in encodings]), torch.tensor([e.attention_mask for e in encodings])


def configuration(vocabulary: int) -> Config:
    """Two towers of two layers."""
    return Config(
        vocab_size=vocabulary,
        hidden_size=32,
        num_heads=4,
        num_layers=2,
        intermediate_size=64,
        max_positions=16,
        projection_size=32,
        eos_token_id=1,
        image=vision.Config(
            hidden_size=48,
            num_heads=4,
            num_layers=2,
            intermediate_size=96,
            image_size=(8, 8),
            patch_size=2,
            num_channels=1,
            patch_bias=False,
            embedding_norm=True,
            activation="quick_gelu",
            norm_eps=1e-5,
            preprocessing=Preprocessing((8, 8)),
        ),
    )


def new_trainer(recipe: Recipe, digits: Digits, tokenizer: Tokenizer) -> Trainer[Model]:
    """An untrained model, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = Model(configuration(tokenizer.get_vocab_size()))

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of both directions [1]; captions that fit several pictures of the batch share the answer.

        [1] Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3.
        """
        chosen = torch.randint(len(TEMPLATES), (len(labels),)).tolist()
        captions = [TEMPLATES[t].format(NAMES[label]) for t, label in zip(chosen, labels.tolist(), strict=True)]
        out = model(*encode(tokenizer, captions), model.preprocessor(pixels))
        alike = (labels[:, None] == labels).float()
        target = alike / alike.sum(1, keepdim=True)
        return (F.cross_entropy(out["logits_per_image"], target) + F.cross_entropy(out["logits_per_text"], target)) / 2

    return Trainer(model, loss, recipe, digits.digest())


@torch.no_grad()
def predict(model: Model, tokenizer: Tokenizer, part: Part, template: str) -> np.ndarray:
    """The class whose caption is nearest to each picture, in PyTorch."""
    ids, mask = encode(tokenizer, [template.format(name) for name in NAMES])
    out = model.eval()(ids, mask, model.preprocessor(torch.from_numpy(part.pixels)))
    return out["logits_per_image"].argmax(-1).numpy()


def predict_in_runtime(package: Path, tokenizer: Tokenizer, part: Part, template: str) -> np.ndarray:
    """The same from the package."""
    graphs = Graphs(package)
    ids, mask = encode(tokenizer, [template.format(name) for name in NAMES])
    values = graphs["preprocessor"].run({"pixels": part.pixels})["pixel_values"]
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "pixel_values": values}
    return graphs["model"].run(inputs)["logits_per_image"].argmax(-1)


def ship(trainer: Trainer[Model], tokenizer: Tokenizer, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    config = trainer.model.config
    export_package(
        trainer.model,
        contrastive.signature(config),
        path,
        console,
        task=contrastive.task(config),
        files=[TextFile("tokenizer.json", tokenizer.to_str())],
        provenance={"source": "examples/train_contrastive.py", "data": "scikit-learn's digits (UCI, CC BY 4.0)"},
    )


def report(package: Path, trainer: Trainer[Model], tokenizer: Tokenizer, digits: Digits, console: Console) -> None:
    """Zero-shot accuracy from PyTorch and ONNX Runtime, with captions of training and with the one held out."""
    for template in (TEMPLATES[0], HELD_OUT):
        ours = predict(trainer.model, tokenizer, digits.test, template)
        theirs = predict_in_runtime(package, tokenizer, digits.test, template)
        shares = tuple(f"{accuracy_score(digits.test.labels, found):.2%}" for found in (ours, theirs))
        title = f'digits, test part, by "{template.format("…")}"'
        console.print(side_by_side({"zero-shot accuracy": (shares[0], shares[1])}, ours, theirs, title))


def main(
    package: Annotated[Path, typer.Argument(help="Where the package goes; one that stands there is replaced.")],
    epochs: Annotated[int, typer.Option(min=1, help="How often every picture is seen, in all.")] = RECIPE.epochs,
    minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this, and end with the epoch.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an earlier run.")] = False,
) -> None:
    """Trains a tiny CLIP on handwritten digits and captions and ships it as an ONNX package."""
    out, err = Console(), Console(stderr=True)
    folder = package.with_name(f"{package.name}-training")
    try:
        refuse_taken(package, force=True)
        digits, tokenizer = read_digits(), make_tokenizer()
        trainer = new_trainer(Recipe(epochs=epochs), digits, tokenizer)
        if resume:
            trainer.load(folder / "checkpoint.pt")
        folder.mkdir(parents=True, exist_ok=True)
        part = digits.validation
        run_epochs(
            trainer,
            digits.training,
            lambda: float((predict(trainer.model, tokenizer, part, TEMPLATES[0]) == part.labels).mean()),
            folder,
            minutes=minutes,
            console=err,
        )
        ship(trainer, tokenizer, package, err)
    except (ExportError, OSError, ValueError) as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print(f"stopped; --resume goes on from the last whole epoch ({folder / 'checkpoint.pt'})", soft_wrap=True)
        raise typer.Exit(130) from None
    report(package, trainer, tokenizer, digits, out)
    trainer.draw(folder / "training.png")
    out.print(
        f'training: {folder / "training.png"}; try: isoformer run {package} digit.png "the digit six" "the digit nine"'
    )


if __name__ == "__main__":
    typer.run(main)
