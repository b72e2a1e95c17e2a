"""The example of a GAN: its measures, its moved images, a tiny training that is resumed and shipped."""

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the examples are not installed

from examples import train_gan as example  # noqa: E402
from examples.digits import Digits, read_digits  # noqa: E402
from examples.training import Training  # noqa: E402

SMALL = dataclasses.replace(
    example.CONFIG, hidden_size=16, num_heads=2, num_layers=1, intermediate_size=24, latent_size=5, max_grid=4
)
RECIPE = example.Recipe(rounds=3, steps=4, batch=6, average=0.5)
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def data() -> Digits:
    return read_digits(example.VALIDATION)


def trained(
    data: Digits, folder: Path, rounds: int = RECIPE.rounds, resume: bool = False
) -> tuple[example.Networks, Training]:
    networks = example.Networks(SMALL, RECIPE.seed)
    training = example.new_training(networks, RECIPE, data)
    training.start(folder, resume)
    training.run(folder, QUIET, rounds=rounds, minutes=9)
    return networks, training


def test_images_are_moved_by_a_pixel_at_most():
    torch.manual_seed(0)
    x = torch.full((200, 1, 8, 8), -1.0)
    x[:, 0, 3, 5] = 1
    found = example.moved(x)
    assert (found == 1).sum((1, 2, 3)).eq(1).all()
    assert (found == -1).sum((1, 2, 3)).eq(63).all()
    places = {divmod(int(place), 8) for place in found.flatten(1).argmax(1)}
    assert places == {(row, column) for row in (2, 3, 4) for column in (4, 5, 6)}


def test_levels_are_pixel_values(data):
    values = example.to_pixel_values(data.test)
    assert (values.shape, values.min(), values.max()) == ((360, 1, 8, 8), -1, 1)
    np.testing.assert_allclose((values.flatten(1).numpy() + 1) * 8, data.test.images)


def test_distances_of_what_is_known():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((4000, 3))
    alike = example.distances(one, rng.standard_normal((4000, 3)))
    assert alike["Fréchet"] < 0.01
    assert 0.47 < alike["neighbours"] < 0.53
    # means 2 apart in one axis; in another the standard deviation is 3: 2² + (3 - 1)²
    other = rng.standard_normal((4000, 3)) * [1, 3, 1] + [2, 0, 0]
    assert example.distances(one, other)["Fréchet"] == pytest.approx(8, rel=0.05)
    assert example.distances(one, one + 100)["neighbours"] == 1


def test_the_measures_tell_the_baselines_apart(data):
    found = example.judge(np.zeros((360, 64)), data.training, data.test)
    real, noise = found["training images"], found["uniform noise"]
    assert real["Fréchet"] < found["normal, with the training's mean and covariance"]["Fréchet"] < noise["Fréchet"]
    assert real["neighbours"] < 0.6
    assert noise["neighbours"] == found["drawn by the generator"]["neighbours"] == 1


def test_resumed_training_is_the_very_same(data, tmp_path):
    whole, training = trained(data, tmp_path / "whole")
    assert {name: len(points) for name, points in training.curves.items()} == dict.fromkeys(
        ("squared gradient (R1)", "discriminator", "generator"), RECIPE.rounds
    )
    trained(data, tmp_path / "parts", rounds=1)
    torch.manual_seed(99)  # another process
    parts, _ = trained(data, tmp_path / "parts", resume=True)
    for one, other in ((whole.trained, parts.trained), (whole.shipped, parts.shipped)):
        for name, weight in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], weight), name
    fresh = example.Networks(SMALL, RECIPE.seed).trained.state_dict()
    same = [name for name, weight in whole.trained.state_dict().items() if torch.equal(weight, fresh[name])]
    assert not same


def test_what_is_shipped_is_the_mean():
    networks = example.Networks(SMALL, 0)
    before = [weight.clone() for weight in networks.shipped.generator.parameters()]
    with torch.no_grad():
        for weight in networks.trained.generator.parameters():
            weight += 1
    networks.average(0.75)
    for old, new in zip(before, networks.shipped.generator.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    assert networks.shipped.discriminator is networks.trained.discriminator


@pytest.mark.slow
def test_from_digits_to_a_package_that_draws_the_same(data, tmp_path):
    (networks, training), said = trained(data, tmp_path, rounds=1), Console(file=io.StringIO(), width=120)
    example.ship(networks, training, tmp_path / "package", said)
    found = example.report(tmp_path / "package", networks.shipped, data, tmp_path, said)
    assert found["same 8-bit pixels"] > 0.999
    assert found["largest difference of a pixel"] < 1e-4
    assert found["largest difference of a score"] < 1e-4
    assert (tmp_path / "samples.png").is_file()
