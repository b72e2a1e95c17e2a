from dataclasses import replace

import pytest
import torch
from torch import Tensor

from isoformer.models.families import decoder
from isoformer.models.families.image_generator import TINY, Config, GridPositions, Model, signature, task

PIXELS = TINY.height * TINY.width


def build(config: Config = TINY) -> Model:
    torch.manual_seed(0)
    model = Model(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def drawn(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(TINY.levels, TINY.no_class + 1, (batch,), generator=generator)
    return classes, torch.randint(TINY.levels, (batch, PIXELS), generator=generator)


@pytest.fixture(scope="module")
def model() -> Model:
    return build()


def test_the_edge_is_a_decoders():
    assert signature(TINY) == decoder.signature(TINY.decoder)
    assert TINY.decoder.vocab_size == TINY.levels + len(TINY.labels) + 1 == TINY.no_class + 1
    assert TINY.decoder.max_positions == PIXELS + 1


def test_a_pixel_depends_on_the_class_and_the_pixels_before_it_alone(model):
    classes, pixels = drawn()
    want = model.scores(classes, pixels)
    assert want.shape == (3, PIXELS, TINY.levels)
    for place in (0, 1, TINY.width, PIXELS - 2):
        other = pixels.clone()
        other[:, place] = (other[:, place] + 1) % TINY.levels
        changed = (model.scores(classes, other) - want).abs().amax((0, 2)) > 1e-9
        assert not changed[: place + 1].any()
        assert changed[place + 1 :].all()
    other = TINY.levels + (classes - TINY.levels + 1) % 4
    assert ((model.scores(other, pixels) - want).abs().amax(-1) > 1e-9).all()


def test_training_and_the_graph_agree_step_by_step(model):
    classes, pixels = drawn()
    want = model.scores(classes, pixels)
    ids = torch.cat([classes[:, None], pixels[:, :-1]], 1)
    names = [f"past_key_values.{i}.{kind}" for i in range(TINY.num_layers) for kind in ("key", "value")]
    past = {name: torch.zeros(3, 3, 0, 8, dtype=torch.float64) for name in names}
    for start, stop in ((0, 1), (1, 2), (2, 30), (30, PIXELS)):
        where = torch.arange(start, stop).expand(3, -1)
        found = model(ids[:, start:stop], torch.ones(3, stop), where, where - start, **past)
        torch.testing.assert_close(found["logits"][..., : TINY.levels], want[:, start:stop], atol=1e-11, rtol=0)
        past = {name: found[name.replace("past_key_values", "present")] for name in names}


def test_positions_have_a_row_and_a_column():
    torch.manual_seed(0)
    positions = GridPositions(TINY)
    found = positions(torch.arange(PIXELS + 1)[None])[0]
    torch.testing.assert_close(found[0], positions.start)
    want = positions.rows.weight[:, None] + positions.columns.weight
    torch.testing.assert_close(found[1:].unflatten(0, (TINY.height, TINY.width)), want)
    with pytest.raises(ValueError, match="position 7 is not in 0"):
        positions(torch.tensor([[PIXELS + 1]]))


def test_fewer_rows_are_the_first_of_the_picture(model):
    """Another height needs no other model: pixels of later rows change nothing."""
    classes, pixels = drawn()
    part = 3 * TINY.width
    torch.testing.assert_close(model.scores(classes, pixels[:, :part]), model.scores(classes, pixels)[:, :part])


def test_gradients_reach_every_weight():
    model = Model(TINY)
    classes, pixels = drawn()
    model.scores(classes, pixels).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_task_says_what_the_tokens_are():
    said = task(TINY)
    assert (said["name"], said["kind"], said["levels"], said["no_class"]) == ("generate-image", "autoregressive", 5, 8)
    assert (said["height"], said["width"], said["labels"]) == (7, 11, list(TINY.labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 1}, "levels is 1"),
        ({"height": 0}, "height is 0"),
        ({"labels": ("a", "a")}, "labels are a, a; each must be another"),
        ({"num_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
    ],
)
def test_a_configuration_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
