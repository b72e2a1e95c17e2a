"""The task transcribe: its rules on numbers made by hand, and the real model on real speech."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
import transformers
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from isoformer.export import weights
from isoformer.export.graph import to_onnx
from isoformer.export.source import Source, resolve
from isoformer.models import registry
from isoformer.runtime import InputError
from isoformer.runtime.generation import Settings
from isoformer.runtime.package import Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.session import Graphs, Session
from isoformer.runtime.tasks import transcribe, translate
from isoformer.runtime.tasks.transcribe import segments, srt, timestamp_rules

# Ids as small as they go: text 0 … 6, eos 7, no timestamps 12, and 0 s at 13.
EOS, SILENT, BEGIN, SIZE, PROMPT = 7, 12, 13, 90, [8, 9]
SENTENCE = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."


def left(new: list[int], logits: np.ndarray | None = None) -> list[int]:
    """The tokens that the rules leave behind `new`."""
    rules = timestamp_rules(len(PROMPT), BEGIN, EOS, SILENT)
    logits = np.concatenate([np.full(BEGIN, 9.0), np.zeros(SIZE - BEGIN)]) if logits is None else logits
    return np.flatnonzero(np.isfinite(rules([*PROMPT, *new], logits))).tolist()


def stamps(first: int, last: int = SIZE - BEGIN - 1) -> list[int]:
    return list(range(BEGIN + first, BEGIN + last + 1))


TEXT = [token for token in range(BEGIN) if token != SILENT]


# the rules


def test_the_first_token_is_a_time_of_one_second_at_most():
    assert left([]) == stamps(0, 50)


def test_text_follows_the_first_time():
    assert left([BEGIN + 3]) == TEXT


def test_behind_text_comes_text_or_a_later_time():
    assert left([BEGIN + 3, 4]) == [*TEXT, *stamps(4)]


def test_behind_an_end_comes_a_start_or_the_end_of_all():
    assert left([BEGIN + 3, 4, BEGIN + 9]) == [EOS, *stamps(9)]


def test_behind_a_start_comes_text():
    assert left([BEGIN + 3, 4, BEGIN + 9, BEGIN + 9]) == TEXT
    assert left([BEGIN + 3, 4, BEGIN + 9, BEGIN + 11, 5]) == [*TEXT, *stamps(12)]


def test_times_that_are_likelier_together_than_any_text():
    """77 times of logit 0 have log(77) = 4.34 together, of which a text's 4 falls short and 5 does not."""
    for best, want in ((5.0, [*TEXT, *stamps(0)]), (4.0, stamps(0))):
        logits = np.full(SIZE, 0.0)
        logits[:BEGIN] = -50.0
        logits[4] = best
        found = left([BEGIN, 4], logits)
        assert found == [token for token in want if token != BEGIN]


@pytest.mark.parametrize("seed", range(20))
def test_as_transformers(seed):
    """On drawn logits, step by step along a greedy sequence."""
    config = transformers.GenerationConfig(
        eos_token_id=EOS, no_timestamps_token_id=SILENT, max_initial_timestamp_index=50
    )
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT))
    ours, rng = timestamp_rules(len(PROMPT), BEGIN, EOS, SILENT), np.random.default_rng(seed)
    ids = list(PROMPT)
    for _ in range(15):
        logits = rng.standard_normal(SIZE) * 3
        logits[8:SILENT] = -np.inf  # other special tokens are suppressed before
        want = theirs(cast(Any, torch.tensor([ids])), torch.from_numpy(logits)[None].clone())[0].numpy()
        found = ours(ids, logits)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(want), err_msg=str(ids))
        ids.append(int(found.argmax()))
        if ids[-1] == EOS:
            break
    assert len(ids) > len(PROMPT)


# segments


def test_frames_that_are_done():
    """A window goes on behind a sound's end; what is no longer waiting is done."""
    first, second, third = (transcribe.Recording("", np.zeros(n * 160, np.float32), 160) for n in (700, 500, 300))
    first.seek, second.seek, third.seek = 200, 3000, 100
    assert transcribe._frames([first, second, third], [first, second]) == ([200, 500, 300], [700, 500, 300])


def test_segments_between_pairs_of_times():
    """What comes behind the last pair is left to the next window, which begins there."""
    tokens = [BEGIN, 1, 2, BEGIN + 5, BEGIN + 6, 3, BEGIN + 11, BEGIN + 11, 4]
    assert segments(tokens, BEGIN) == ([(0, 5, tokens[:4]), (6, 11, tokens[4:7])], 11)


def test_a_window_that_ends_with_one_time_is_done():
    tokens = [BEGIN, 1, 2, BEGIN + 5, BEGIN + 6, 3, BEGIN + 11]
    assert segments(tokens, BEGIN) == ([(0, 5, tokens[:4]), (6, 11, tokens[4:])], None)


def test_one_segment():
    assert segments([BEGIN + 2, 1, BEGIN + 7], BEGIN) == ([(0, 7, [BEGIN + 2, 1, BEGIN + 7])], None)
    assert segments([BEGIN, 1, 2], BEGIN) == ([(0, None, [BEGIN, 1, 2])], None)
    assert segments([], BEGIN) == ([], None)


def test_srt():
    parts = [{"start": 0.0, "end": 1.5, "text": "One."}, {"start": 3599.9996, "end": 3661.004, "text": "Two."}]
    want = "1\n00:00:00,000 --> 00:00:01,500\nOne.\n\n2\n01:00:00,000 --> 01:01:01,004\nTwo.\n\n"
    assert srt([{"segments": parts}]) == want
    assert srt([{"segments": []}]) == ""


# the real model


class Unmeasured(Mapping[str, Session]):
    """The sessions of a model's graphs as `Graphs` has them, without the measuring that a package takes."""

    def __init__(self, folder: Path, source: Source) -> None:
        parts = registry.graphs(source.model, source.signature)
        weights.save({name: to_onnx(module, edge, 23) for name, (module, edge) in parts.items()}, folder, 0)
        for file in source.files:
            if isinstance(file, Path):
                shutil.copy(file, folder)
        edges = {name: RuntimeSignature.read(edge.to_dict()) for name, (_, edge) in parts.items()}
        made = {name: Package(folder, {"task": source.task}, edge, name) for name, edge in edges.items()}
        self.package = made[translate.DECODER]
        self._sessions = {name: Session(package) for name, package in made.items()}

    def __getitem__(self, name: str) -> Session:
        return self._sessions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)


@pytest.fixture(scope="module")
def graphs(whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return cast(Graphs, Unmeasured(tmp_path_factory.mktemp("whisper"), resolve(str(whisper))))


def said(graphs: Graphs, sound: np.ndarray, folder: Path, **options: Any) -> dict[str, Any]:
    soundfile.write(folder / "sound.wav", sound, 16000)
    (result,) = transcribe.run(graphs, [str(folder / "sound.wav")], **options)
    json.dumps(result)
    return result


@pytest.fixture(scope="module")
def speech(beckett: Path) -> np.ndarray:
    return soundfile.read(beckett, dtype="float32")[0]


@pytest.mark.slow
def test_a_spoken_sentence(graphs, speech, tmp_path):
    plain = said(graphs, speech, tmp_path, timestamps=False)
    assert plain["text"] == SENTENCE
    assert len(plain["segments"]) == 1
    timed = said(graphs, speech, tmp_path)
    assert timed["text"] == SENTENCE
    ends = [time for part in timed["segments"] for time in (part["start"], part["end"])]
    assert ends == sorted(ends)
    assert ends[0] < 2 < 8 < ends[-1] <= len(speech) / 16000


def words(text: str) -> list[str]:
    return [word.strip(".,").lower() for word in text.split()]


@pytest.mark.slow
def test_beams(graphs, speech, tmp_path):
    """The same words; a likelier answer may have other commas."""
    beams = said(graphs, speech, tmp_path, settings=Settings(beams=3, max_tokens=64))
    assert words(beams["text"]) == words(SENTENCE)


@pytest.mark.slow
def test_longer_than_a_window(graphs, speech, tmp_path):
    """47 s in which no two windows hold the same: nothing is lost or said twice where they meet."""
    pauses = [np.zeros(seconds * 16000, np.float32) for seconds in (5, 12)]
    result = said(graphs, np.concatenate([speech, pauses[0], speech, pauses[1], speech]), tmp_path)
    assert words(result["text"]) == words(SENTENCE) * 3
    starts = [part["start"] for part in result["segments"]]
    assert starts == sorted(starts)
    assert 36 < starts[-1] < result["segments"][-1]["end"] <= 47


@pytest.mark.slow
def test_nobody_speaks(graphs, tmp_path):
    rng = np.random.default_rng(0)
    sounds = [0 * rng.standard_normal(5 * 16000), 0 * rng.standard_normal(40 * 16000)]
    for sound in (*sounds, 1e-3 * rng.standard_normal(80000), 0.1 * rng.standard_normal(80000)):
        result = said(graphs, sound.astype(np.float32), tmp_path)
        assert (result["text"], result["segments"], result["token_ids"]) == ("", [], [])


@pytest.mark.slow
def test_next_to_nothing(graphs, speech, tmp_path):
    """A tenth of a second, and one sample: no word fits into them, and no segment ends behind them."""
    for length in (1600, 1):
        for part in said(graphs, speech[20000 : 20000 + length], tmp_path)["segments"]:
            assert 0 <= part["start"] < part["end"] <= 0.1


@pytest.mark.slow
def test_files_do_not_meet(graphs, beckett, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000, np.float32), 16000)
    done: list[int] = []
    files = [str(tmp_path / "silence.wav"), str(beckett)]
    seconds: list[tuple[float, float]] = []
    silence, sentence = transcribe.run(
        graphs, files, progress=done.append, heard=lambda done, total: seconds.append((done, total))
    )
    assert seconds[-1][0] == seconds[-1][1] > 9
    assert sorted(seconds) == seconds
    assert (silence["text"], sentence["text"]) == ("", SENTENCE)
    assert [silence["input"], sentence["input"]] == files
    assert sum(done) == 2


@pytest.mark.slow
def test_what_the_model_does_not_know(graphs, beckett):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"language": "de"}, "language 'de' is not one of en"),
        ({"task": "translate"}, "task 'translate' is not one of transcribe"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            transcribe.run(graphs, [str(beckett)], **options)
