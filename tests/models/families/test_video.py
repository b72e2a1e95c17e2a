from dataclasses import replace

import pytest
import torch
from torch import Tensor

from isoformer.models.families.video import TINY, Model, signature, task

LENGTH, BATCH = 11, 3


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    model = Model(TINY).double().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.3)
    return model.requires_grad_(False)


def clip(length: int = LENGTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, length, TINY.channels, 6, 6, generator=generator, dtype=torch.float64)


def ones(length: int = LENGTH) -> Tensor:
    return torch.ones(BATCH, length, dtype=torch.int64)


def close(have: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(have, want, atol=1e-11, rtol=0)


@pytest.mark.parametrize("garbage", [0.0, 7.0, float("nan")])
@pytest.mark.parametrize("places", [slice(0, 5), slice(3, 8), slice(6, 11), slice(0, 10, 2)])
def test_padding_anywhere_changes_nothing(model, garbage, places):
    x = clip()
    want = model(x[:, places], ones(x[:, places].shape[1]))
    mask = 0 * ones()
    mask[:, places] = 1
    found = model(torch.where(mask[:, :, None, None, None] == 1, x, garbage), mask)
    close(found["logits"], want["logits"])
    close(found["last_hidden_state"][:, places], want["last_hidden_state"])


def test_clips_of_several_lengths_share_a_batch(model):
    x, lengths = clip(), (11, 4, 1)
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    together = model(x, mask)["logits"]
    for row, length in enumerate(lengths):
        close(together[row], model(x[row : row + 1, :length], ones(length)[:1])["logits"][0])


def test_every_pixel_of_every_frame_counts_and_so_does_the_order(model):
    x = clip(4)
    want = model(x, ones(4))["logits"]
    for frame in range(4):
        for place in ((0, 0), (5, 5), (2, 3)):
            other = x.clone()
            other[:, frame, :, place[0], place[1]] += 1
            assert (model(other, ones(4))["logits"] - want).abs().amax(-1).min() > 1e-6
    assert (model(x.flip(1), ones(4))["logits"] - want).abs().amax(-1).min() > 1e-6
    assert (model(x.flip(4), ones(4))["logits"] - want).abs().amax(-1).min() > 1e-6


def test_frames_meet_in_the_temporal_encoder_alone(model):
    x = clip(4)
    want = model.frames(x)
    x[:, 1] += 1
    changed = (model.frames(x) - want).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [False, True, False, False]


def test_a_clip_without_a_frame_says_the_same_whatever_stands_there(model):
    none = model(clip(), 0 * ones())["logits"]
    assert none.isfinite().all()
    close(none, model(clip(5, seed=2), 0 * ones(5))["logits"])


def test_gradients_reach_every_weight():
    model = Model(TINY)
    mask = ones()
    mask[1, 4:] = 0
    mask[2] = 0
    model(clip().float(), mask)["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_edge_and_the_task():
    edge = signature(TINY)
    assert edge.inputs[0].axes == ("batch_size", "num_frames", 3, 6, 6)
    assert (edge.inputs[1].kind, edge.axes["num_frames"].max, edge.padding) == ("mask", 41, ("right", "left"))
    said = task(TINY)
    assert (said["name"], said["labels"], said["frames"]) == ("classify-video", list(TINY.labels), 8)
    assert (said["image_size"], said["short_side"], task(replace(TINY, short_side=9))["short_side"]) == (6, 6, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4}, "image_size 6 is not a multiple of patch_size 4"),
        ({"max_frames": 7}, "frames_per_clip 8 is over max_frames 7"),
        ({"short_side": 5}, "short_side 5 is below image_size 6"),
        ({"stride": 0}, "stride is 0"),
        ({"labels": ()}, "labels are none"),
        ({"labels": ("a", "a")}, "labels are a, a"),
        ({"image_std": 0.0}, "image_std is 0.0"),
        ({"num_temporal_layers": 0}, "num_temporal_layers is 0"),
    ],
)
def test_a_configuration_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
