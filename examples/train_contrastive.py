"""Trains a tiny CLIP on scikit-learn's digits and captions, ships it as ONNX, and names digits by their captions.

    python -m examples.train_contrastive demo/clip

    digits.py              the pictures, the split, what a batch is
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

from examples.common import Minutes, Resume, Target, export_package, program, side_by_side
from examples.digits import NAMES, SOURCE, Digits, Part, Recipe, naming, read_digits
from examples.training import Training
from isoformer.models.checkpoints import TextFile
from isoformer.models.families import contrastive, vision
from isoformer.models.families.contrastive import Config, Model
from isoformer.models.images import Preprocessing
from isoformer.runtime import Graphs

TEMPLATES = ("the digit {}", "a picture of the number {}", "a handwritten {}", "{}")
HELD_OUT = "a picture of the digit {}"  # its words are known, the sentence is not
RECIPE = Recipe(epochs=80)
VALIDATION = 360  # digits
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


def new_training(recipe: Recipe, digits: Digits, tokenizer: Tokenizer) -> Training[Model]:
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

    return naming(model, loss, lambda part: predict(model, tokenizer, part, TEMPLATES[0]), recipe, digits)


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


def ship(training: Training[Model], tokenizer: Tokenizer, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    origin, files = f"random, trained for {training.length()}", [TextFile("tokenizer.json", tokenizer.to_str())]
    export_package(
        contrastive, training.model, path, console, example=__file__, weights=origin, data=SOURCE, files=files
    )


def report(package: Path, model: Model, tokenizer: Tokenizer, digits: Digits, console: Console) -> None:
    """Zero-shot accuracy from PyTorch and ONNX Runtime, with captions of training and with the one held out."""
    for template in (TEMPLATES[0], HELD_OUT):
        ours = predict(model, tokenizer, digits.test, template)
        theirs = predict_in_runtime(package, tokenizer, digits.test, template)
        shares = tuple(f"{accuracy_score(digits.test.labels, found):.2%}" for found in (ours, theirs))
        title = f'digits, test part, by "{template.format("…")}"'
        console.print(side_by_side({"zero-shot accuracy": (shares[0], shares[1])}, ours, theirs, title))


def main(
    package: Target,
    epochs: Annotated[int, typer.Option(min=1, help="How often every picture is seen, in all.")] = RECIPE.epochs,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Trains a tiny CLIP on handwritten digits and captions and ships it as an ONNX package."""
    with program(package) as (out, err, folder):
        digits, tokenizer = read_digits(VALIDATION), make_tokenizer()
        training = new_training(Recipe(epochs=epochs), digits, tokenizer)
        training.start(folder, resume)
        training.run(folder, err, rounds=epochs, minutes=minutes)
        ship(training, tokenizer, package, err)
        report(package, training.model, tokenizer, digits, out)
        example = f'isoformer run {package} digit.png "the digit six" "the digit nine"'
        out.print(f"training: {folder / 'training.png'}; try: {example}")


if __name__ == "__main__":
    typer.run(main)
