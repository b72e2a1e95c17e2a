"""The examples on digits: a split without leaks, training that resumes to the very same, packages that say the same."""

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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the examples are not installed

from examples import digits, train_contrastive, train_vision  # noqa: E402
from examples.training import Training, threads  # noqa: E402
from isoformer.runtime import load  # noqa: E402
from tests.conftest import export_small  # noqa: E402

QUIET = Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def small() -> digits.Digits:
    """A few of them."""
    whole = digits.read_digits(360)
    few = [digits.Part(p.images[:60], p.labels[:60]) for p in (whole.training, whole.validation, whole.test)]
    return digits.Digits(*few)


def classifier(small: digits.Digits, epochs: int = 4) -> Training:
    config = dataclasses.replace(
        train_vision.CONFIG, hidden_size=12, num_heads=2, num_layers=1, intermediate_size=16, patch_size=4
    )
    return train_vision.new_training(digits.Recipe(epochs=epochs, batch=30), small, config)


def test_the_parts_share_no_picture_and_hold_every_class_alike():
    found = digits.read_digits(360)
    parts = (found.training, found.validation, found.test)
    assert [len(part.labels) for part in parts] == [1077, 360, 360]
    assert found.digest() == digits.read_digits(360).digest() != digits.read_digits(360, seed=1).digest()
    np.testing.assert_array_equal(digits.read_digits(180).test.images, found.test.images)
    images = [{pixels.tobytes() for pixels in part.pixels} for part in parts]
    assert not images[0] & images[1] | images[0] & images[2] | images[1] & images[2]
    for part in parts:
        assert np.bincount(part.labels).min() > 0.085 * len(part.labels)
        assert part.pixels.dtype == np.uint8
        assert (part.pixels.min(), part.pixels.max()) == (0, 255)
        assert (part.images.min(), part.images.max()) == (0, digits.LEVELS - 1)
        assert len(part) == len(part.images)


def test_resumed_training_is_the_very_same(small, tmp_path):
    whole = classifier(small)
    whole.start(tmp_path / "whole")
    whole.run(tmp_path / "whole", QUIET, rounds=4, minutes=9)
    first = classifier(small)
    first.start(tmp_path / "parts")
    first.run(tmp_path / "parts", QUIET, rounds=1, minutes=9)
    second = classifier(small)
    torch.manual_seed(99)  # another process
    second.start(tmp_path / "parts", resume=True)
    assert second.rounds == 1
    second.run(tmp_path / "parts", QUIET, rounds=4, minutes=9)
    assert second.curves == whole.curves
    assert whole.curves["training loss"][-1] < whole.curves["training loss"][0]
    assert len(whole.curves["validation accuracy"]) == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name
    with pytest.raises(ValueError, match="other settings or other data"):
        classifier(small, epochs=5).start(tmp_path / "parts", resume=True)


def test_a_package_says_what_pytorch_says(small, tmp_path, monkeypatch):
    training, said = classifier(small, 2), Console(file=io.StringIO(), width=160)
    training.run(tmp_path, QUIET, rounds=2, minutes=9)
    monkeypatch.setattr("examples.common.export", export_small)
    train_vision.ship(training, tmp_path / "package", QUIET)
    ours = train_vision.predict(training.model, small.test)
    np.testing.assert_array_equal(train_vision.predict_in_runtime(tmp_path / "package", small.test), ours)
    train_vision.report(tmp_path / "package", training.model, small, tmp_path, said)
    text = said.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "60 of 60 (100.00%)" in text
    assert "logistic regression (scikit-learn)" in text
    for name in ("predictions.png", "training.png"):
        assert imread(tmp_path / name).shape[2] == 4
    assert imread(tmp_path / "digit.png").shape == (8, 8)
    source = load(tmp_path / "package").manifest["source"]
    assert source == {
        "name": "examples/train_vision.py",
        "weights": "random, trained for 2 epochs",
        "data": digits.SOURCE,
    }


def test_the_captions_are_learned():
    tokenizer = train_contrastive.make_tokenizer()
    assert tokenizer.encode(train_contrastive.HELD_OUT.format("nine")).tokens[-2:] == ["nine", "[EOS]"]
    assert "[UNK]" not in tokenizer.encode(train_contrastive.HELD_OUT.format("nine")).tokens
    training = train_contrastive.new_training(digits.Recipe(epochs=3), digits.read_digits(360), tokenizer)
    with threads():
        losses = [training.round()["training loss"] for _ in range(3)]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("example", [train_vision, train_contrastive])
def test_mistakes_are_one_line(example, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(typer.Exit) as stopped:
        example.main(tmp_path / "taken")
    said = capsys.readouterr().err
    assert stopped.value.exit_code == 2
    assert said.count("\n") == 1
    assert "is not a package" in said


def test_ctrl_c_leaves_a_checkpoint_and_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "round", interrupted)
    with pytest.raises(typer.Exit) as stopped:
        train_vision.main(tmp_path / "package")
    said = capsys.readouterr().err
    assert stopped.value.exit_code == 130
    assert said.count("\n") == 1
    assert "--resume" in said
    assert (tmp_path / "package-training/checkpoint.pt").exists()
