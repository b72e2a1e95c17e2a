"""Picture files of every mode, and those that are none."""

import sys

import numpy as np
import pytest
from PIL import Image

from isoformer.runtime import InputError, images
from isoformer.runtime.errors import IsoformerError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def saved(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options) if mode is None else Image.fromarray(pixels).convert(mode).save(
        path, **options
    )
    return path


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp"])
def test_formats_without_loss(tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", RGB, **({"lossless": True} if kind == "webp" else {}))
    found = images.read(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("kind", ["jpg", "gif"])
def test_formats_with_loss(tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", np.full((9, 7, 3), (200, 30, 90), np.uint8))
    assert np.abs(images.read(path).astype(int) - (200, 30, 90)).max() <= 4


def test_grey(tmp_path):
    path = saved(tmp_path / "grey.png", RGB[..., 0])
    np.testing.assert_array_equal(images.read(path), RGB[..., :1].repeat(3, 2))
    np.testing.assert_array_equal(images.read(path, 1), RGB[..., :1])
    red = saved(tmp_path / "red.png", np.full((2, 3, 3), (255, 0, 0), np.uint8))
    assert (images.read(red, 1) == 76).all()


def test_sixteen_bits_are_the_upper_eight(tmp_path):
    path = saved(tmp_path / "deep.png", RGB[..., 0].astype(np.uint16) * 256 + 200)
    np.testing.assert_array_equal(images.read(path, 1), RGB[..., :1])
    dark = saved(tmp_path / "dark.png", np.full((2, 3), 200, np.uint16))
    assert (images.read(dark, 1) == 0).all()


def test_palettes_and_two_colours(tmp_path):
    path = saved(tmp_path / "palette.png", np.full((3, 4, 3), (0, 204, 51), np.uint8), "P")
    assert (images.read(path) == (0, 204, 51)).all()  # one of the 216 that the palette has
    black = saved(tmp_path / "bits.png", np.array([[0, 255]], np.uint8), "1")
    np.testing.assert_array_equal(images.read(black, 1)[..., 0], [[0, 255]])


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    np.testing.assert_array_equal(images.read(saved(tmp_path / "a.png", pixels)), [[[10, 20, 30], [255, 255, 255]]])
    pixels = np.array([[[40, 255], [40, 0]]], np.uint8)
    np.testing.assert_array_equal(images.read(saved(tmp_path / "la.png", pixels), 1)[..., 0], [[40, 255]])


def test_the_orientation_of_a_camera(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to the right
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    np.testing.assert_array_equal(images.read(path), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.png", None, "is not a file"),
        ("text.png", b"no picture at all", "is not a picture that can be read"),
        ("empty.png", b"", "is not a picture that can be read"),
        ("cut.png", 60, "cannot be read as a picture"),
        ("cut.jpg", 500, "cannot be read as a picture"),
        ("cut.bmp", 80, "cannot be read as a picture"),
    ],
)
def test_files_that_are_no_picture(tmp_path, name, content, said):
    path = tmp_path / name
    if isinstance(content, int):
        saved(path, RGB.repeat(9, 0).repeat(9, 1))
        content = path.read_bytes()[:content]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        images.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_mistakes(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="name of a picture file is empty"):
        images.read(" ")
    path = saved(tmp_path / "a.png", RGB)
    with pytest.raises(InputError, match="takes 2 channels"):
        images.read(path, 2)
    saved(tmp_path / "f.tiff", RGB[..., 0].astype(np.float32))
    with pytest.raises(InputError, match="floating point"):
        images.read(tmp_path / "f.tiff")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="more than 20 pixels"):
        images.read(path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(IsoformerError, match=r"pip install 'isoformer\[image\]'"):
        images.read(path)
