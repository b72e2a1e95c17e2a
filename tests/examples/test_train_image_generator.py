"""The example that draws digits: its data, its baseline, a tiny training that is resumed and shipped."""

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

from examples import train_image_generator as example  # noqa: E402
from examples.digits import Digits, Part, read_digits  # noqa: E402
from examples.training import Training  # noqa: E402
from tests.conftest import export_small  # noqa: E402

SMALL = dataclasses.replace(example.CONFIG, hidden_size=16, num_heads=2, num_layers=1, intermediate_size=24)
RECIPE = example.Recipe(rounds=3, batch=20, rate=1e-2)
QUIET = Console(file=io.StringIO())


def few(part: Part, count: int = 60) -> Part:
    return Part(part.images[:count], part.labels[:count])


@pytest.fixture(scope="module")
def data() -> Digits:
    whole = read_digits(example.VALIDATION)
    return Digits(few(whole.training), few(whole.validation, 20), few(whole.test, 20))


def trained(data: Digits, folder: Path, rounds: int = RECIPE.rounds, resume: bool = False) -> Training[example.Model]:
    training = example.new_training(RECIPE, data, SMALL)
    training.start(folder, resume)
    training.run(folder, QUIET, rounds=rounds, minutes=9)
    return training


def test_bits_of_a_histogram():
    """Two classes, one black and one white image in four: what each pixel costs is known."""
    images = np.zeros((8, 64), np.int64)
    images[3], images[4:] = 16, 5
    part = Part(images, np.repeat([0, 1], 4))
    want = (3 * np.log2(4 / 3) + np.log2(4)) / 8
    assert example.histogram_bits(part, part, weight=1e-9) == pytest.approx(want, abs=1e-6)


def test_resumed_training_is_the_very_same(data, tmp_path):
    whole = trained(data, tmp_path / "whole")
    trained(data, tmp_path / "parts", rounds=1)
    torch.manual_seed(99)  # another process
    parts = trained(data, tmp_path / "parts", resume=True)
    assert parts.curves == whole.curves
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], weight), name
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["checkpoint.pt", "loss.png"]
    with pytest.raises(ValueError, match="other settings or other data"):
        trained(dataclasses.replace(data, training=few(data.training, 59)), tmp_path / "parts", resume=True)


def test_from_digits_to_a_package_that_draws_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "SAMPLES", 2)
    monkeypatch.setattr(example, "ROWS", 2)
    monkeypatch.setattr("examples.common.export", export_small)
    training, said = trained(data, tmp_path, rounds=2), Console(file=io.StringIO(), width=120)
    example.ship(training, tmp_path / "package", said)
    found = example.report(tmp_path / "package", training.model, data, tmp_path, said)
    assert found["same"] == 1
    assert found["bits"] == pytest.approx(found["bits in PyTorch"], rel=1e-5)
    assert 0 < found["bits"] < 5
    assert imread(tmp_path / "samples.png").shape[:2] == (2 * 68 + 4, 10 * 68 + 4)
    text = said.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "20 of 20 (100.00%)" in text
    assert "20 images whole" in text


def test_minutes_end_the_training(data, tmp_path):
    training = example.new_training(RECIPE, data, SMALL)
    training.start(tmp_path)
    training.run(tmp_path, QUIET, rounds=3, minutes=0)
    assert training.rounds == 0
    example.new_training(RECIPE, data, SMALL).start(tmp_path, resume=True)  # usable all the same


@pytest.mark.parametrize(("raised", "status", "words"), [(KeyboardInterrupt, 130, "--resume"), (OSError("x"), 2, "x")])
def test_what_goes_wrong_is_one_line(tmp_path, monkeypatch, capsys, raised, status, words):
    def stopped(*_: object) -> None:
        raise raised

    monkeypatch.setattr(Training, "round", stopped)
    with pytest.raises(typer.Exit) as ended:
        example.main(tmp_path / "package")
    said = capsys.readouterr().err
    assert (ended.value.exit_code, said.count("\n")) == (status, 1)
    assert words in said
    assert (tmp_path / "package-training/checkpoint.pt").is_file()


def test_without_a_checkpoint_nothing_is_resumed(tmp_path, capsys):
    with pytest.raises(typer.Exit):
        example.main(tmp_path / "package", resume=True)
    assert "start without --resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
