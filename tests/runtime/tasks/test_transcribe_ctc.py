"""The task transcribe-ctc: its best path on numbers made by hand, and a random model beside PyTorch."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from isoformer.models.families import speech
from isoformer.runtime import Graphs, InputError
from isoformer.runtime.tasks.transcribe_ctc import _between_pauses, collapse, run, spans
from tests.conftest import export_small
from tests.runtime.conftest import byte_tokenizer

CONFIG = replace(speech.TINY, head="ctc", vocab_size=280, blank_token_id=3)
UNIT, MOST = 320, CONFIG.max_frames // 2


@pytest.fixture(scope="module")
def model() -> speech.Model:
    torch.manual_seed(4)
    made = speech.Model(CONFIG).eval()
    with torch.no_grad():
        assert made.head is not None
        for weight in made.encoder.parameters():  # answers that hardly vary would prove little
            weight.normal_(std=0.5)
        made.head.bias[3] += 1  # some frames are blank
    return made


@pytest.fixture(scope="module")
def graphs(model: speech.Model, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder = tmp_path_factory.mktemp("ctc")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    made = export_small(
        model,
        speech.signature(CONFIG),
        folder / "package",
        task=speech.task(CONFIG),
        files=[folder / "tokenizer.json"],
    )
    return Graphs(made)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sounds of odd lengths: one window, a few samples, three windows."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    made = []
    for number, samples in enumerate((9_137, 57, 40_001)):
        made.append(folder / f"{number}.wav")
        soundfile.write(made[-1], rng.standard_normal(samples).astype(np.float32) * 0.2, 16_000, subtype="FLOAT")
    return made


# ------------------------------------------------------------------------------------------------ the best path


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([0, 0, 0], []),
        ([5], [(5, 0, 1)]),
        ([0, 5, 5, 0, 5, 7, 7], [(5, 1, 3), (5, 4, 5), (7, 5, 7)]),
    ],
)
def test_what_repeats_is_said_once_and_blanks_not(tokens: list[int], expected: list[tuple[int, int, int]]) -> None:
    assert collapse(tokens, 0) == expected


@pytest.mark.parametrize("most", [1, 5, 6, 64, 1500])
@pytest.mark.parametrize("frames", [1, 2, 63, 64, 65, 97, 1000])
def test_each_frame_is_read_once_and_far_from_the_edge_of_its_window(frames: int, most: int) -> None:
    found = spans(frames, most)
    assert [frame for _, _, first, last in found for frame in range(first, last)] == list(range(frames))
    for start, stop, first, last in found:
        assert stop - start <= most
        assert start == 0 or first - start == most // 6
        assert stop == frames or stop - last == most // 6


def test_segments_stand_between_pauses() -> None:
    tokens = [(5, 0, 2), (6, 3, 4), (7, 14, 15)]
    assert _between_pauses(tokens, 10) == [tokens[:2], tokens[2:]]
    assert _between_pauses(tokens, 11) == [tokens]
    assert _between_pauses([], 10) == []


# ---------------------------------------------------------------------------------------------------- a package


def test_tokens_are_those_of_pytorch(model: speech.Model, graphs: Graphs, files: list[Path]) -> None:
    sound, _ = soundfile.read(files[0], dtype="float32")
    frames = -(-len(sound) // UNIT)
    waveform = torch.from_numpy(np.pad(sound, (0, frames * UNIT - len(sound))))[None]
    with torch.no_grad():
        best = model(model.features(waveform))[0].argmax(-1).tolist()
    expected = [token for token, _ in groupby(best) if token != 3]
    assert 3 < len(expected) < len(best)
    assert run(graphs, [str(files[0])])[0]["token_ids"] == expected


def test_files_of_a_batch_are_each_what_they_are_alone(graphs: Graphs, files: list[Path]) -> None:
    done, seconds = [], []
    together = run(
        graphs, [str(file) for file in files], progress=done.append, heard=lambda *both: seconds.append(both)
    )
    assert together == [run(graphs, [str(file)])[0] for file in files]
    assert sum(done) == 3
    assert seconds[-1][0] == seconds[-1][1]


def test_a_long_file_and_its_first_window(graphs: Graphs, files: list[Path], tmp_path: Path) -> None:
    long = run(graphs, [str(files[2])])[0]
    assert long["segments"][-1]["end"] > 2.3  # of 2.5 s; a window has 1.28
    assert long["segments"][-1]["end"] <= 2.52
    sound, _ = soundfile.read(files[2], dtype="float32")
    soundfile.write(tmp_path / "first.wav", sound[: MOST * UNIT], 16_000, subtype="FLOAT")
    first = run(graphs, [str(tmp_path / "first.wav")])[0]["token_ids"]
    assert run(graphs, [str(files[2])], truncate=True)[0]["token_ids"] == first


def test_the_command_line(graphs: Graphs, files: list[Path], tmp_path: Path, isoformer: Callable[..., Any]) -> None:
    package = graphs.package.path
    done = isoformer("run", package, files[0], "--json", "--srt", tmp_path / "out.srt")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == run(graphs, [str(files[0])])[0]
    assert (tmp_path / "out.srt").read_text().startswith("1\n00:00:00,")
    failed = isoformer("run", package, *files[:2], "--srt", tmp_path / "two.srt")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "--srt: subtitles are of one sound file, and 2 are given" in failed.stderr
    assert not (tmp_path / "two.srt").exists()
    for arguments, words in ((("--language", "de"), "--language: not for"), (("--beams", "2"), "--beams: not for")):
        failed = isoformer("run", package, files[0], *arguments)
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
        assert words in failed.stderr


def test_what_is_no_sound(graphs: Graphs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.wav is not a file; give a sound file"):
        run(graphs, [str(tmp_path / "missing.wav")])
