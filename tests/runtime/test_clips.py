import sys
from pathlib import Path

import av
import numpy as np
import pytest

from isoformer.runtime import InputError, clips
from isoformer.runtime.errors import IsoformerError

SIZE = (48, 64)  # height, width
COUNT = 20


def write(path: Path, count: int = COUNT, options: dict[str, str] | None = None) -> Path:
    """Frames whose red grows with time and whose green grows from the left to the right."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for number in range(count):
            frame = np.zeros((*SIZE, 3), np.uint8)
            frame[..., 0] = 10 + 10 * (number % 20)
            frame[..., 1] = np.linspace(0, 250, SIZE[1])
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_frames_in_order(clip):
    found = clips.read(clip)
    assert (found.shape, found.dtype) == ((COUNT, *SIZE, 3), np.uint8)
    np.testing.assert_allclose(found[:, 10:-10, 5, 0].mean(1), 10 + 10 * np.arange(COUNT), atol=8)
    np.testing.assert_allclose(found[10, 20, :, 1], np.linspace(0, 250, SIZE[1]), atol=12)


def test_the_shorter_side_is_scaled(clip):
    found = clips.read(clip, 24)
    assert found.shape == (COUNT, 24, 32, 3)
    np.testing.assert_allclose(found[:, 12, 3, 0], 10 + 10 * np.arange(COUNT), atol=10)
    np.testing.assert_allclose(found[10, 12, :, 1], np.linspace(2, 248, 32), atol=12)


def test_chosen_frames_are_those_of_the_whole(clip):
    counts = []

    def choose(count: int) -> np.ndarray:
        counts.append(count)
        return np.array([0, 7, 19])

    np.testing.assert_array_equal(clips.read(clip, 24, choose), clips.read(clip, 24)[[0, 7, 19]])
    assert counts == [COUNT]


def test_a_size_that_changes_on_the_way(tmp_path):
    """Two streams of JPEG pictures, one behind the other: the file is one video of two sizes."""
    parts = []
    for number, size in enumerate(((48, 64), (24, 40))):
        with av.open(str(tmp_path / f"{number}.mjpeg"), "w", format="mjpeg") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.height, stream.width, stream.pix_fmt = *size, "yuvj420p"
            for _ in range(3):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
                for packet in stream.encode(frame.reformat(format="yuvj420p")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        parts.append((tmp_path / f"{number}.mjpeg").read_bytes())
    (tmp_path / "both.mjpeg").write_bytes(b"".join(parts))
    found = clips.read(tmp_path / "both.mjpeg")
    np.testing.assert_array_equal(
        clips.read(tmp_path / "both.mjpeg", choose=lambda n: np.array([1, n - 1])), found[[1, 5]]
    )
    assert found.shape == (6, 48, 64, 3)
    np.testing.assert_allclose(found, 90, atol=6)


def test_evenly():
    assert clips.evenly(100, 4).tolist() == [12, 37, 62, 87]
    assert clips.evenly(3, 4).tolist() == [0, 1, 2]
    assert clips.evenly(100, 3, 10).tolist() == [39, 49, 59]
    assert clips.evenly(25, 4, 10).tolist() == [2, 12, 22]
    assert clips.evenly(5, 4, 10).tolist() == [2]
    for count in range(1, 40):
        for wanted in range(1, 12):
            for stride in (None, 1, 3, 7):
                places = clips.evenly(count, wanted, stride)
                assert 0 <= places[0] <= places[-1] < count
                assert (np.diff(places) > 0).all()
                assert 1 <= len(places) <= wanted
                assert abs(places[0] - (count - 1 - places[-1])) <= 1


def test_the_middle():
    frames = np.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3)
    np.testing.assert_array_equal(clips.middle_square(frames, 3), frames[:, 1:4, 2:5])


def test_what_is_no_video(tmp_path, beckett):
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for path, words in (
        (tmp_path / "text.mp4", "cannot be read as video"),
        (tmp_path / "empty.mp4", "cannot be read as video"),
        (tmp_path / "none.mp4", "is not a file"),
        (tmp_path, "is not a file"),
        ("", "is empty"),
        (beckett, "holds no video"),
    ):
        with pytest.raises(InputError, match=words) as error:
            clips.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_file_that_is_cut_off(tmp_path, options, share):
    whole = write(tmp_path / "whole.mp4", 60, options).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut\.mp4 (cannot be read as video|holds no video)"):
        clips.read(tmp_path / "cut.mp4")


def test_without_pyav_one_line_says_what_to_install(monkeypatch, clip):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(IsoformerError, match=r"pip install 'isoformer\[video\]'"):
        clips.read(clip)
