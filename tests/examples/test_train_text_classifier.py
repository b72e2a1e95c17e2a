"""The text classifier example: Orange's files, the split, MiniLM under a new head, and a tiny model shipped."""

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.image import imread
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the examples are not installed

from examples import train_text_classifier as example  # noqa: E402
from examples.train_text_classifier import Articles, News  # noqa: E402
from examples.training import Training  # noqa: E402
from isoformer.models import checkpoints  # noqa: E402
from isoformer.models.families import encoder  # noqa: E402
from tests.conftest import export_small  # noqa: E402

REUTERS = ROOT / ".assets/orangecontrib/text/datasets"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "wheat", "oil", "bank", "the", "rises", "falls", "in", "march"]
TOPICS = ("crude", "grain", "interest")
OF_TOPIC = dict(zip(TOPICS, ("oil", "wheat", "bank"), strict=True))


def articles(count: int, seed: int) -> Articles:
    """Sentences with one word of their topic somewhere."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    texts = []
    for label in labels:
        words = random.choice(WORDS[7:], random.integers(2, 6)).tolist()
        words.insert(int(random.integers(len(words))), OF_TOPIC[TOPICS[label]])
        texts.append(" ".join(words))
    return Articles(texts, labels)


@pytest.fixture(scope="module")
def news() -> News:
    return News(TOPICS, articles(96, 1), articles(24, 2), articles(33, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a checkpoint."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("checkpoint")
    (path / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    return path


def tiny(news: News, checkpoint: Path, epochs: int) -> Training:
    torch.manual_seed(1)
    changes = {"vocab_size": len(WORDS), "max_positions": 9, "num_token_types": 0, "dropout": 0.1}
    config = dataclasses.replace(encoder.TINY, task="classify", labels=news.labels, **changes)
    model = encoder.Model(config)
    return example.new_training(model, example.read_tokenizer(checkpoint, 9), news, epochs, frozen=0)


def trained(
    news: News, checkpoint: Path, out: Path, epochs: int, until: int | None = None, resume: bool = False
) -> Training:
    training = tiny(news, checkpoint, epochs)
    training.start(out, resume)
    training.run(out, Console(file=io.StringIO()), rounds=until or epochs, minutes=9)
    return training


def test_oranges_files(tmp_path: Path):
    for part in ("train", "test"):
        rows = ["Category\tText", "d\tstring", "class\t", *["a\tone two", "b\tthree"] * 10, ""]
        (tmp_path / f"reuters-r8-{part}.tab").write_text("\n".join(rows), encoding="utf-8")
    found = example.read_news(tmp_path)
    assert found.labels == ("a", "b")
    assert (len(found.training.texts), len(found.validation.texts), len(found.test.texts)) == (18, 2, 20)
    assert found.test.texts[:2] == ["one two", "three"]
    assert found.test.labels.tolist() == [0, 1] * 10
    assert sorted(found.validation.labels) == [0, 1]  # as in the whole
    (tmp_path / "reuters-r8-test.tab").write_text("Category\tText\nd\tstring\nclass\t\nc\tfour")
    with pytest.raises(ValueError, match="the test has the labels c, which the training lacks"):
        example.read_news(tmp_path)
    (tmp_path / "reuters-r8-test.tab").write_text("Text,Category\n")
    with pytest.raises(ValueError, match="does not begin with the columns Category and Text"):
        example.read_news(tmp_path)


def test_reuters():
    found = example.read_news(REUTERS)
    assert found.labels == ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
    assert (len(found.training.texts), len(found.validation.texts), len(found.test.texts)) == (4936, 549, 2189)
    assert example.read_news(REUTERS).digest() == found.digest()


def test_without_the_files_one_line_says_what_to_do(tmp_path: Path, minilm: Path, capsys: pytest.CaptureFixture[str]):
    for texts, checkpoint in ((tmp_path, minilm), (REUTERS, tmp_path / "none")):
        with pytest.raises(typer.Exit) as stopped:
            example.main(tmp_path / "out", news=texts, checkpoint=checkpoint)
        said = capsys.readouterr().err
        assert stopped.value.exit_code == 2
        assert said.count("\n") == 1
        assert "make assets" in said
    assert not list(tmp_path.iterdir())


def test_the_body_is_minilms_and_the_head_is_new(minilm: Path):
    torch.manual_seed(0)
    model = example.new_model(minilm, TOPICS, 32).eval()
    theirs = checkpoints.read(minilm, "embed").model(pooler=False)
    ids = torch.randint(0, 30522, (2, 32))
    seen = {}
    hooked = model.head.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids))["logits"]
        expected = theirs(ids, torch.ones_like(ids))["last_hidden_state"]
    hooked.remove()
    assert torch.allclose(seen["x"], expected, atol=1e-5)
    assert logits.shape == (2, 3)
    assert model.config.max_length == 32
    training = example.new_training(
        model, example.read_tokenizer(minilm, 32), News(TOPICS, articles(32, 1), articles(9, 2), articles(9, 3)), 1
    )
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"blocks", "head"}
    frozen = [all(not p.requires_grad for p in block.parameters()) for block in model.blocks]
    assert frozen == [True] * example.FROZEN + [False] * (6 - example.FROZEN)
    groups = training.parts["optimizer"].state_dict()["param_groups"]
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_batches_hold_every_article_once():
    ids = [[7] * (n % 11 + 1) + [n] for n in range(100)]
    labels = np.arange(100)
    for epoch in (None, 0, 1):
        made = example.batches(ids, labels, epoch)
        rows = [
            (row[mask == 1].tolist(), int(label)) for batch in made for row, mask, label in zip(*batch, strict=True)
        ]
        assert sorted(rows, key=lambda row: row[1]) == [(ids[n], n) for n in range(100)]
    one, again, other = (example.batches(ids, labels, epoch)[0].labels.tolist() for epoch in (3, 3, 4))
    assert one == again != other


def test_resumed_training_is_the_very_same(news: News, folder: Path, tmp_path: Path):
    whole = trained(news, folder, tmp_path / "whole", 4)
    trained(news, folder, tmp_path, 4, until=2)
    torch.manual_seed(99)  # another process
    second = trained(news, folder, tmp_path, 4, resume=True)
    assert second.curves == whole.curves
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name
    assert imread(tmp_path / "loss.png").shape == (480, 840, 4)


def test_from_articles_to_a_package_that_says_the_same(
    news: News, folder: Path, tmp_path: Path, isoformer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("examples.common.export", export_small)
    training, said = trained(news, folder, tmp_path, 30), Console(file=io.StringIO(), width=120)
    training.take_best()
    assert max(training.curves[example.VALIDATION]) > 0.9
    package = tmp_path / "package"
    example.ship(training, folder, package, said)
    found = example.report(package, training.model, example.read_tokenizer(folder, 9), news, said)
    printed = said.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "33 of 33 (100.00%)" in printed
    assert "TF-IDF" in printed
    example.draw_confusion(news.test.labels, found, news.labels, tmp_path / "confusion.png")
    assert imread(tmp_path / "confusion.png").ndim == 3
    answer = isoformer("run", package, "oil rises in the march " * 5, "--truncate")
    assert answer.returncode == 0, answer.stderr
    assert "crude" in answer.stdout
    assert isoformer("inspect", package).returncode == 0
