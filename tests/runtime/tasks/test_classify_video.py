"""classify-video: which frames are looked at, and that clips of several lengths do not change each other."""

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from isoformer.models.families import video
from isoformer.runtime import InputError, Session, clips, tasks
from isoformer.runtime.tasks import classify_video
from tests.conftest import export_small

CONFIG = dataclasses.replace(video.TINY, frames_per_clip=5, short_side=8)


def exported(path: Path, **changes) -> Session:
    torch.manual_seed(3)
    config = dataclasses.replace(CONFIG, **changes)
    model = video.Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Session(export_small(model, video.signature(config), path, task=video.task(config)))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return exported(tmp_path_factory.mktemp("video") / "package")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Random clips of 9, 3, 1 and 30 frames."""
    folder, rng, made = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for length in (9, 3, 1, 30):
        path = folder / f"{length}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for _ in range(length):
                pixels = rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        made.append(str(path))
    return made


def test_the_best_label_of_each_clip(session, files):
    assert tasks.of(session.package) is classify_video
    done: list[int] = []
    results = classify_video.run(session, files * 3, progress=done.append)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert [result["input"] for result in results] == files * 3
    assert [result["frames"] for result in results[:4]] == [5, 3, 1, 5]
    assert sum(done) == 12
    for file, result in zip(files, results, strict=False):
        assert result["label"] == max(result["scores"], key=result["scores"].get)
        assert list(result["scores"]) == list(CONFIG.labels)
        assert sum(result["scores"].values()) == pytest.approx(1)
        (alone,) = classify_video.run(session, [file])
        assert alone["scores"] == pytest.approx(result["scores"], abs=1e-6)
    assert len({tuple(result["scores"].values()) for result in results[:4]}) == 4


def test_what_the_model_sees(session, files):
    task = session.package.task
    found = classify_video.load(files[3], task)
    frames = clips.read(files[3], 8)
    assert frames.shape == (30, 8, 12, 3)
    want = (frames[[3, 9, 15, 21, 27], 1:7, 3:9].astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(found, want.transpose(0, 3, 1, 2), atol=1e-6)
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    strided = classify_video.load(files[3], task | {"stride": 2})
    np.testing.assert_allclose(strided[0], (frames[10, 1:7, 3:9].transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)
    grey = classify_video.load(files[3], task | {"channels": 1})
    np.testing.assert_allclose(grey[:, 0], found.mean(1), atol=1e-6)


def test_shorter_clips_are_padded_and_masked():
    made = classify_video.batch([np.ones((n, 3, 6, 6), np.float32) for n in (2, 4, 1)])
    assert made["frame_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert made["pixel_values"].sum((2, 3, 4)).tolist() == [[108, 108, 0, 0], [108] * 4, [108, 0, 0, 0]]


def test_the_command_line(isoformer, session, files, tmp_path):
    done = isoformer("run", session.package.path, *files, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == files
    table = isoformer("run", session.package.path, files[0])
    assert classify_video.run(session, files[:1])[0]["label"] in table.stdout
    (tmp_path / "text.mp4").write_text("hello")
    refused = isoformer("run", session.package.path, tmp_path / "text.mp4")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "cannot be read as video" in refused.stderr


def test_nothing_is_cut(session, files):
    with pytest.raises(InputError, match="leave --truncate"):
        classify_video.run(session, files, truncate=True)
