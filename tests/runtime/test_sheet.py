import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from isoformer.runtime import InputError, sheet
from isoformer.runtime.errors import IsoformerError


def test_one_picture_is_enlarged():
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    found = sheet.arrange([picture])
    assert found.shape == (2 * 22, 3 * 22)  # 66 is the first side from SIDE up
    np.testing.assert_array_equal(found[::22, ::22], picture)
    assert (found[:22, 22:44] == 40).all()
    large = np.zeros((70, 90, 3), np.uint8)
    assert sheet.arrange([large]).shape == (70, 90, 3)


@pytest.mark.parametrize("colours", [(), (3,)])
def test_several_stand_side_by_side(colours):
    pictures = [np.full((32, 64, *colours), shade, np.uint8) for shade in range(1, 6)]
    found = sheet.arrange(pictures, columns=2)
    assert found.shape == (3 * 36 + 4, 2 * 68 + 4, *colours)
    for number in range(5):
        top, left = 4 + number // 2 * 36, 4 + number % 2 * 68
        assert (found[top : top + 32, left : left + 64] == number + 1).all()
    assert (found[:4] == sheet.BACKGROUND).all()
    assert (found[-36:, -68:] == sheet.BACKGROUND).all()
    assert sheet.arrange(pictures[:3]).shape == (40, 3 * 68 + 4, *colours)


def test_a_file_holds_the_picture_and_replaces_another(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    path = tmp_path / "x.png"
    path.write_text("another")
    sheet.save(picture, path)
    np.testing.assert_array_equal(np.round(imread(path)[:, :, :3] * 255), picture)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("name", "words"), [("x.jpg", "does not end in .png"), ("no/x.png", "there is no folder"), ("d.png", "is a folder")]
)
def test_where_no_file_can_go(tmp_path, name, words):
    (tmp_path / "d.png").mkdir()
    with pytest.raises(InputError, match=words):
        sheet.save(np.zeros((2, 2), np.uint8), tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 1


def test_without_pillow_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(IsoformerError, match=r"pip install 'isoformer\[image\]'"):
        sheet.refuse(Path("x.png"))


def test_as_text():
    picture = np.array([[0, 255], [128, 0]], np.uint8)
    assert sheet.as_text(picture) == "  ██\n▒▒"
    assert sheet.as_text(np.stack([picture] * 3, -1)) == sheet.as_text(picture)
