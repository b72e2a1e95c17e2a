"""The example of four clips: its parts, its pieces, a tiny training that is resumed and shipped."""

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

from examples import train_video as example  # noqa: E402
from examples.training import Training  # noqa: E402

SMALL = dataclasses.replace(
    example.CONFIG,
    image_size=8,
    patch_size=4,
    short_side=12,
    hidden_size=16,
    num_heads=2,
    num_layers=1,
    intermediate_size=24,
)
RECIPE = example.Recipe(rounds=3, steps=2, batch=8)
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def footage() -> example.Footage:
    """Four clips of 30 frames: each is of a colour of its own, and frame n has n in its red."""
    whole = []
    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 60, (30, 12, 20, 3)).astype(np.uint8)
        frames[..., 1] += 120 * (number % 2)
        frames[..., 2] += 120 * (number // 2)
        frames[..., 0] = np.arange(30)[:, None, None]
        whole.append(frames)
    return example.Footage(*([frames[part] for frames in whole] for part in (slice(18), slice(18, 21), slice(21, 30))))


def trained(footage, folder: Path, rounds: int = RECIPE.rounds, resume: bool = False) -> Training:
    training = example.new_training(RECIPE, footage, SMALL)
    training.start(folder, resume)
    training.run(folder, QUIET, rounds=rounds, minutes=9)
    return training


def test_the_clips_have_three_parts_without_a_frame_in_two():
    footage = example.read(ROOT / example.CLIPS, dataclasses.replace(SMALL, labels=("carphone_pristine",)))
    (training,), (validation,), (test,) = footage.training, footage.validation, footage.test
    assert [len(part) for part in (training, validation, test)] == [72, 12, 36]
    assert training.shape[1] == 12


def test_without_the_clips_one_line_says_what_to_do(tmp_path, capsys):
    with pytest.raises(typer.Exit) as stopped:
        example.main(tmp_path / "package", videos=tmp_path)
    said = capsys.readouterr().err
    assert (stopped.value.exit_code, said.count("\n")) == (2, 1)
    assert "make assets" in said
    assert not list(tmp_path.iterdir())


def test_pieces_are_of_one_clip_and_anywhere_in_it(footage):
    pieces = example.draw_pieces(footage.training, 400, RECIPE, 8, np.random.default_rng(0))
    assert np.bincount(pieces.labels).tolist() == [100] * 4
    assert {len(frames) for frames in pieces.frames} == {2, 3, 4, 5, 6}
    assert {frames.shape[1:] for frames in pieces.frames} == {(8, 8, 3)}
    steps = [np.diff(frames[:, 0, 0, 0].astype(int)) for frames in pieces.frames]
    assert all(len(set(step)) == 1 for step in steps)
    assert {int(step[0]) for step in steps} == {1, 2, 3}
    assert {int(n) for frames in pieces.frames for n in frames[:, 0, 0, 0]} == set(range(18))
    for frames, label in zip(pieces.frames, pieces.labels, strict=True):
        assert (frames[..., 1] // 120 + 2 * (frames[..., 2] // 120) == label).all()
    short = example.draw_pieces(
        footage.validation, 40, dataclasses.replace(RECIPE, most=3), 8, np.random.default_rng(0)
    )
    assert {int(n) for frames in short.frames for n in frames[:, 0, 0, 0]} == {18, 19, 20}


def test_the_baseline_tells_colours_apart(footage):
    training, test = (
        example.draw_pieces(footage.training, 80, RECIPE, 8, np.random.default_rng(seed)) for seed in (0, 1)
    )
    assert (example.by_colour(training, test) == test.labels).all()


def test_resumed_training_is_the_very_same(footage, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "PIECES", 8)
    footage = dataclasses.replace(footage, validation=footage.test)
    whole = trained(footage, tmp_path / "whole")
    trained(footage, tmp_path / "parts", rounds=1)
    torch.manual_seed(99)  # another process
    parts = trained(footage, tmp_path / "parts", resume=True)
    assert parts.curves == whole.curves
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], weight), name


@pytest.mark.slow
def test_from_clips_to_a_package_that_says_the_same(footage, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "PIECES", 40)
    footage = dataclasses.replace(footage, validation=footage.test)
    training, said = trained(footage, tmp_path, rounds=3), Console(file=io.StringIO(), width=120)
    example.ship(training, tmp_path / "package", said)
    found = example.report(tmp_path / "package", training.model, footage, tmp_path, said)
    assert found["accuracy"] == found["in PyTorch"]
    assert 0 <= found["colour"] <= 1
    assert imread(tmp_path / "pieces.png").shape == (1200, 900, 4)
