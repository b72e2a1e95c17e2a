from dataclasses import replace

import pytest
import torch
from torch import Tensor

from isoformer.models.families.gan import (
    DISCRIMINATOR,
    GENERATOR,
    TINY,
    Model,
    between,
    from_patches,
    signature,
    stretched,
    task,
    to_patches,
)

ROWS, COLUMNS, P = TINY.grid_rows, TINY.grid_columns, TINY.patch_size


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    model = Model(TINY).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def images(rows: int = ROWS, columns: int = COLUMNS, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, TINY.channels, P * rows, P * columns, generator=generator, dtype=torch.float64)


def close(have: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(have, want, atol=1e-11, rtol=0)


def test_patches_and_back():
    x = images(3, 4)
    patches = to_patches(x, 3, 4, P)
    assert patches.shape == (2, 12, TINY.patch_values)
    close(patches[:, 5].reshape(2, TINY.channels, P, P), x[:, :, P : 2 * P, P : 2 * P])  # row 1, column 1
    close(from_patches(patches, 3, 4, TINY.channels, P), x)


def test_between_two_rows_of_a_table_is_the_line():
    table = torch.tensor([[0.0, 10.0], [2.0, 30.0], [4.0, 0.0]])
    found = between(table, torch.tensor([[0.0, 1.0, 2.0, 0.5, 1.75, -3.0, 9.0]]))
    close(found[0].T, torch.tensor([[0.0, 2.0, 4.0, 1.0, 3.5, 0.0, 4.0], [10.0, 30.0, 0.0, 20.0, 7.5, 10.0, 0.0]]))
    alone = between(table[:1], torch.tensor([[0.0, 1.0, -1.0]]))
    close(alone[0], table[:1].expand(3, -1))


def test_rows_that_are_real_are_stretched_over_the_grid():
    real = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    found = stretched(real, 3, torch.float64)
    close(found[0, :3], torch.arange(3.0).double())
    close(found[1, 2:], torch.arange(3.0).double())
    close(found[2], (torch.arange(5.0).double() + 0.5) * 3 / 5 - 0.5)
    assert stretched(0 * real, 3, torch.float64).isfinite().all()


@pytest.mark.parametrize(("top", "left"), [(0, 0), (2, 1), (1, 4)])
def test_an_image_in_a_larger_rectangle_has_the_score_that_it_has_alone(model, top, left):
    x = images()
    wide = images(ROWS + 2, COLUMNS + 4) * 7
    wide[:, :, P * top : P * (top + ROWS), P * left : P * (left + COLUMNS)] = x
    mask = torch.zeros(2, ROWS + 2, COLUMNS + 4, dtype=torch.int64)
    mask[:, top : top + ROWS, left : left + COLUMNS] = 1
    close(model.score(wide, mask), model.score(x))
    wide[mask.repeat_interleave(P, 1).repeat_interleave(P, 2)[:, None].expand_as(wide) == 0] = float("nan")
    close(model.score(wide, mask), model.score(x))


def test_every_patch_counts_and_knows_its_place(model):
    x = images()
    want = model.score(x)
    for row in range(ROWS):
        for column in range(COLUMNS):
            other = x.clone()
            other[:, :, P * row, P * column] += 1
            assert (model.score(other) - want).abs().min() > 1e-6
    assert (model.score(x.roll(P, 2)) - want).abs().min() > 1e-6
    assert (model.score(x.roll(P, 3)) - want).abs().min() > 1e-6


def test_an_image_of_no_patches_is_finite(model):
    assert model.score(images(), torch.zeros(2, ROWS, COLUMNS)).isfinite().all()


def test_the_generators_images_are_those_of_its_graph_and_of_any_size(model):
    noise = torch.randn(2, TINY.latent_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows, columns = (torch.arange(n).double().expand(2, -1) for n in (ROWS, COLUMNS))
    graph = model.graph(GENERATOR)
    image = model.generate(noise)
    assert image.shape == (2, TINY.channels, P * ROWS, P * COLUMNS)
    assert image.abs().max() <= 1
    close(graph(noise, rows, columns)["pixel_values"], image)
    assert (image[0] - image[1]).abs().max() > 1e-3
    larger = graph(noise, torch.linspace(0, ROWS - 1, 7).double().expand(2, -1), columns)["pixel_values"]
    assert larger.shape == (2, TINY.channels, 7 * P, P * COLUMNS)
    scores = model.graph(DISCRIMINATOR)(image, torch.ones(2, ROWS, COLUMNS))
    close(scores["scores"], model.score(image))
    assert scores["last_hidden_state"].shape == (2, ROWS, COLUMNS, TINY.hidden_size)


def test_the_networks_learn_against_each_other():
    torch.manual_seed(0)
    model = Model(TINY)
    model.score(model.generate(torch.randn(3, TINY.latent_size))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.generator.parameters())


def test_pixels_as_patches():
    axes = signature(replace(TINY, patch_size=1))[DISCRIMINATOR].inputs[0].axes
    assert axes == ("batch_size", 3, "num_rows", "num_columns")
    assert signature(TINY)[GENERATOR].outputs[0].axes == ("batch_size", 3, "height", "width")


def test_the_task_says_what_the_generator_takes():
    assert task(TINY) == {
        "name": "generate-image",
        "kind": "gan",
        "height": 6,
        "width": 10,
        "grid_rows": 3,
        "grid_columns": 5,
        "latent_size": 7,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_size": 0}, "latent_size is 0"),
        ({"max_grid": 4}, "a grid of 3 × 5 is over max_grid 4"),
        ({"num_discriminator_layers": 0}, "num_discriminator_layers is 0"),
        ({"num_heads": 2}, "hidden_size 21 is not a multiple of num_heads 2"),
    ],
)
def test_a_configuration_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
