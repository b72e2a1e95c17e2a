"""Vision Transformers: positions for any grid, pictures of several sizes in one batch, masks, heads."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from isoformer.models.families import vision
from isoformer.models.images import InterpolatedPositions, Preprocessing, Preprocessor

GRIDS = ((3, 5), (1, 1), (2, 9), (7, 4), (11, 13))


def model(seed: int = 0, **changes: Any) -> vision.Model:
    """TINY in float64, every weight random: what is zero or one would hide errors."""
    torch.manual_seed(seed)
    made = vision.Model(dataclasses.replace(vision.TINY, **changes)).double().eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def picture(rows: int, columns: int, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 2 * rows, 2 * columns, generator=generator, dtype=torch.float64)


def close(have: Tensor, want: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(have, want, atol=atol, rtol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_positions_are_interpolated_as_torch_does(grid):
    table = InterpolatedPositions(3, 5, 7).double().requires_grad_(False)
    have = table(torch.ones(2, *grid, dtype=torch.bool))
    native = table.weight.permute(2, 0, 1)[None]
    want = F.interpolate(native, grid, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    close(have, want.expand(2, -1, -1, -1))
    if grid == (3, 5):
        assert torch.equal(have[0], table.weight)


@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 8)], ids=str)
def test_a_picture_anywhere_on_a_larger_canvas_is_itself_alone(place):
    ours, (top, left) = model(), place
    alone = picture(4, 3)
    canvas, mask = picture(8, 11, seed=2), torch.zeros(1, 8, 11, dtype=torch.long)
    canvas[:, :, 2 * top : 2 * top + 8, 2 * left : 2 * left + 6] = alone
    mask[:, top : top + 4, left : left + 3] = 1
    have, want = ours(canvas, mask), ours(alone)
    for name in ("image_embeds", "pooler_output"):
        close(have[name], want[name])
    kept = torch.cat([torch.ones(1, 1), mask.flatten(1)], 1)[0] == 1
    close(have["last_hidden_state"][:, kept], want["last_hidden_state"])


@pytest.mark.parametrize(
    "changes", [{}, {"pooling": "mean"}, {"pooling": "mean", "special_tokens": 0, "pooler_size": None}]
)
def test_pictures_of_several_sizes_share_a_batch(changes):
    ours = model(**changes)
    grids = ((3, 5), (6, 2), (1, 7))
    canvas, mask = torch.full((3, 3, 12, 14), torch.nan, dtype=torch.float64), torch.zeros(3, 6, 7)
    for row, (rows, columns) in enumerate(grids):
        canvas[row, :, : 2 * rows, : 2 * columns] = picture(rows, columns, seed=row)[0]
        mask[row, :rows, :columns] = 1
    together = ours(canvas, mask)["image_embeds"]
    for row, grid in enumerate(grids):
        close(together[row], ours(picture(*grid, seed=row))["image_embeds"][0])


def test_what_stands_under_the_mask_changes_nothing():
    ours, one = model(), picture(4, 6)
    mask = torch.ones(1, 4, 6)
    mask[0, 1:3, 2] = mask[0, 3] = 0
    other = torch.where(mask.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None] == 1, one, torch.inf)
    for name, value in ours(one, mask).items():
        close(ours(other, mask)[name], value)
    assert (ours(one)["image_embeds"] - ours(one, mask)["image_embeds"]).abs().max() > 0.01


def test_holes_leave_patches_out_and_the_grid_as_it_is():
    """The same as attention over the patches that are kept, in any order, each with its own position."""
    ours = model()
    one, mask = picture(3, 5), torch.tensor([[[1, 0, 1, 1, 1], [1, 1, 0, 0, 1], [0, 1, 1, 1, 1]]])
    x = ours.encoder.embeddings(one, mask.bool())
    kept = torch.cat([torch.ones(1, 1), mask.flatten(1)], 1)[0] == 1
    alone = x[:, kept]
    for block in ours.encoder.blocks:
        alone = block(alone)
    close(ours(one, mask)["last_hidden_state"][:, kept], ours.final_norm(alone))
    close(x[0, kept][1:], ours.encoder.embeddings(one, torch.ones(1, 3, 5).bool())[0, kept][1:])


@pytest.mark.parametrize("changes", [{}, {"pooling": "mean"}, {"special_tokens": 2}])
def test_a_picture_without_patches_is_zero_and_disturbs_nobody(changes):
    ours = model(**changes)
    two, mask = picture(3, 4, batch=2), torch.ones(2, 3, 4)
    mask[1] = 0
    have = ours(two, mask)
    assert (have["image_embeds"][1] == 0).all()
    assert all(value.isfinite().all() for value in have.values())
    close(have["image_embeds"][0], ours(two[:1])["image_embeds"][0])


def test_heads():
    labels = ("a", "b", "c")
    both = {"task": "classify-image", "labels": labels, "special_tokens": 2, "teacher": True}
    ours = model(**both)
    hidden = ours.final_norm(ours.encoder(picture(3, 5))[0])
    head: Any = ours.head
    want = (head.classifier(hidden[:, 0]) + head.teacher(hidden[:, 1])) / 2
    close(ours(picture(3, 5))["logits"], want)
    ours = model(pooling="mean", normalize=False)
    out = ours(picture(3, 5))
    close(out["image_embeds"], out["last_hidden_state"][:, 1:].mean(1))
    close(model()(picture(3, 5))["image_embeds"].norm(dim=1), torch.ones(1).double())
    assert vision.task(dataclasses.replace(vision.TINY, **both))["labels"] == list(labels)
    assert vision.task(vision.TINY) == {"name": "embed-image"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": (7, 10)}, "multiples of patch_size 2"),
        ({"image_size": (6,)}, "it is (height, width)"),
        ({"max_rows": 2}, "max_rows and max_columns are (2, 13)"),
        ({"special_tokens": 0}, "read the class token"),
        ({"special_tokens": 3}, "special_tokens 3 is not one of"),
        ({"task": "classify-image"}, "needs labels"),
        ({"teacher": True}, "two special_tokens"),
        ({"num_channels": 2, "preprocessing": Preprocessing((6, 10), mean=(0, 0, 0), std=(1, 1, 1))}, "of 2 channels"),
        ({"preprocessing": Preprocessing((6, 11))}, "the preprocessing's size is (6, 11)"),
        ({"num_heads": 2}, "hidden_size 21 is not a multiple"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        dataclasses.replace(vision.TINY, **changes)


def test_pixels_and_mask_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(1, 3, 6, 10\) and patch_mask \(1, 3, 4\); a patch has 2 × 2 pixels"):
        model()(picture(3, 5), torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match="a patch has 2 × 2 pixels"):
        model()(picture(3, 5)[..., :-1])


@pytest.mark.parametrize(("resample", "number"), [("bilinear", 2), ("bicubic", 3)])
@pytest.mark.parametrize("size", [(5, 7), (40, 31), (23, 29)], ids=str)
def test_resizing_is_pillows_but_for_its_rounding(resample, number, size):
    pixels = np.random.default_rng(3).integers(0, 256, (23, 29, 1), np.uint8)
    ours = Preprocessor(Preprocessing(size, resample=resample, rescale=1.0, mean=(0.0,), std=(1.0,)))
    have = ours(torch.from_numpy(pixels)[None])[0, 0]
    want = Image.fromarray(pixels[..., 0]).resize(size[::-1], number)
    assert (have - torch.from_numpy(np.asarray(want, np.float32))).abs().max() <= 1.5
    if size == (23, 29):
        assert torch.equal(have, torch.from_numpy(pixels[..., 0]).float())


def test_a_crop_beyond_the_picture_is_black_and_centred():
    ours = Preprocessor(Preprocessing(None, crop=(6, 3), rescale=1.0, mean=(0.0,), std=(1.0,)))
    have = ours(torch.full((1, 3, 6, 1), 9, dtype=torch.uint8))[0, 0]
    assert have.tolist() == [[0, 0, 0], [0, 0, 0], [9, 9, 9], [9, 9, 9], [9, 9, 9], [0, 0, 0]]
