"""generate-image with both kinds of models: what is drawn, from which numbers, and where it goes."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from isoformer.models.families import gan, image_generator
from isoformer.runtime import Graphs, InputError, Package, PackageError, Session, tasks
from isoformer.runtime.generation import Settings
from isoformer.runtime.tasks import generate_image
from tests.conftest import export_small

TINY = image_generator.TINY
SMALL = dataclasses.replace(gan.TINY, max_grid=5)
SIZE = (TINY.height, TINY.width)


@pytest.fixture(scope="module")
def model() -> image_generator.Model:
    torch.manual_seed(5)
    model = image_generator.Model(TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def session(model: image_generator.Model, tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("images") / "package"
    return Session(export_small(model, image_generator.signature(TINY), path, task=image_generator.task(TINY)))


@pytest.fixture(scope="module")
def networks() -> gan.Model:
    torch.manual_seed(5)
    return gan.Model(SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def graphs(networks: gan.Model, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    path = tmp_path_factory.mktemp("gan") / "package"
    return Graphs(export_small(networks, gan.signature(SMALL), path, task=gan.task(SMALL)))


def pixels(results) -> np.ndarray:
    return np.array([result["pixels"] for result in results])


def test_the_task_is_known(session, graphs):
    assert tasks.of(session.package) is tasks.of(graphs.package) is generate_image


def test_classes_by_label_and_number(session):
    texts = ["round", " other ", "1", "any"]
    done: list[int] = []
    results = generate_image.run(session, texts, settings=Settings(seed=3), progress=done.append)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert [list(result) for result in results] == [["input", "label", "size", "levels", "pixels", "output"]] * 4
    assert [result["input"] for result in results] == texts
    assert [result["label"] for result in results] == ["round", "other", "square", None]
    assert pixels(results).shape == (4, *SIZE)
    assert 0 <= pixels(results).min() < pixels(results).max() < TINY.levels == results[0]["levels"]
    assert sum(done) == 4


def test_a_picture_is_that_of_its_seed_and_its_place(session):
    one, same, other = (pixels(generate_image.run(session, ["0"] * 9, settings=Settings(seed=s))) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any((1, 2)).all()
    assert (one[0] != one[1]).any()
    np.testing.assert_array_equal(pixels(generate_image.run(session, ["0"], settings=Settings(seed=3))), one[:1])
    assert (pixels(generate_image.run(session, ["0"])) != pixels(generate_image.run(session, ["0"]))).any()


def test_the_draws_are_those_of_the_modules_own_probabilities(session, model):
    found = pixels(generate_image.run(session, ["square", "any"], settings=Settings(seed=8))).reshape(2, -1)
    classes = torch.tensor([TINY.levels + 1, TINY.no_class])
    p = model.scores(classes, torch.from_numpy(found)).double().softmax(-1).cumsum(-1).numpy()
    for number in range(2):
        draws = np.random.default_rng([8, number]).random(found.shape[1])
        assert [int(np.searchsorted(row, u, side="right")) for row, u in zip(p[number], draws, strict=True)] == list(
            found[number]
        )


def test_settings(session, model):
    greedy = pixels(generate_image.run(session, ["0"], settings=Settings(temperature=0))).reshape(1, -1)
    best = model.scores(torch.tensor([TINY.levels]), torch.from_numpy(greedy)).argmax(-1).numpy()
    np.testing.assert_array_equal(greedy, best)
    np.testing.assert_array_equal(
        pixels(generate_image.run(session, ["0"], settings=Settings(top_k=1, seed=1))).reshape(1, -1), greedy
    )
    beams = pixels(generate_image.run(session, ["0"], settings=Settings(beams=2)))
    assert beams.shape == (1, *SIZE)
    assert beams.max() < TINY.levels
    refused: list[dict[str, Any]] = [
        {"settings": Settings(max_tokens=3)},
        {"settings": Settings(eos=(1,))},
        {"truncate": True},
    ]
    for wrong in refused:
        with pytest.raises(InputError, match="leave"):
            generate_image.run(session, ["0"], **wrong)


@pytest.mark.parametrize("text", ["3", "-1", "", "roun", "²", "1.0", "9" * 5000])
def test_what_is_no_class(session, text):
    with pytest.raises(InputError, match="is no class of this model; it draws round, square, other, or any"):
        generate_image.run(session, ["0", text])


def test_pictures_of_noise(graphs, networks):
    seeds = ["0", "7", "7", "123456789"]
    results = generate_image.run(graphs, seeds)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    found = pixels(results)
    assert found.shape == (4, 6, 10, 3)
    np.testing.assert_array_equal(found[1], found[2])
    assert (found[0] != found[1]).any()
    noise = np.stack([np.random.default_rng(int(seed)).standard_normal(7) for seed in seeds]).astype(np.float32)
    want = (networks.generate(torch.from_numpy(noise)).permute(0, 2, 3, 1).numpy() + 1) * 127.5
    np.testing.assert_allclose(found, want, atol=0.51)
    many = generate_image.run(graphs, [str(seed) for seed in range(70)])
    np.testing.assert_array_equal(many[7]["pixels"], found[1])


@pytest.mark.parametrize("text", ["-1", "x", "", "1.5", "²", "9" * 5000, str(2**63)])
def test_what_is_no_seed(graphs, text):
    with pytest.raises(InputError, match="is no seed; give a whole number"):
        generate_image.run(graphs, [text])


def test_a_gan_has_no_settings(graphs):
    with pytest.raises(InputError, match="all in its number"):
        generate_image.run(graphs, ["0"], settings=Settings(seed=1))


def test_to_uint8():
    values = np.array([-1.0, -1.5, 0.0, 1.0, 2.0, 0.5], np.float32).reshape(1, 1, 2, 3)
    assert generate_image.to_uint8(values).tolist() == [[[0, 0, 128], [255, 255, 191]]]


def test_a_sheet(session, graphs, tmp_path: Path):
    path = tmp_path / "x.png"
    results = generate_image.run(session, ["0", "1", "2"], settings=Settings(seed=1), output=path)
    assert {result["output"] for result in results} == {str(path)}
    shown = np.round(
        imread(path)[
            :,
            :,
        ]
        * 255
    )
    factor = 6
    assert shown.shape[:2] == (7 * factor + 8, 3 * (11 * factor + 4) + 4)
    first = shown[4 : 4 + 7 * factor : factor, 4 : 4 + 11 * factor : factor]
    np.testing.assert_allclose(first, pixels(results)[0] * 255 / 4, atol=0.5)
    generate_image.run(graphs, ["1"], output=path)
    assert imread(path).shape[:2] == (42, 70)
    with pytest.raises(InputError, match=r"does not end in \.png"):
        generate_image.run(session, ["0"], output=tmp_path / "x.jpg")


def test_nothing_to_draw(session):
    assert generate_image.run(session, []) == []


@pytest.mark.parametrize("kind", ["gan", None, "diffusion"])
def test_a_package_of_another_kind(session, kind):
    loaded = session.package
    other = Package(loaded.path, loaded.manifest | {"task": {"name": "generate-image", "kind": kind}}, loaded.signature)
    with pytest.raises(PackageError, match="draws no pictures"):
        generate_image.run(Session(other), ["0"])


def shown(results) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    generate_image.show(results, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_show():
    result = {"input": "round", "label": "round", "size": [1, 3], "levels": 5, "pixels": [[0, 4, 2]], "output": None}
    assert shown([result]) == "round\n  ██▒▒\n"
    assert shown([result | {"output": "a/b.png"}] * 3) == "wrote a/b.png\n"
    assert shown([result | {"size": [3, 99]}]) == "1 pictures of 3 × 99 pixels; --output PNG writes them\n"
    assert shown([]) == ""


def test_the_command_line(isoformer, session, graphs, tmp_path: Path):
    done = isoformer("run", session.package.path, "0", "any", "--seed", "4", "--json", "-O", tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    want = generate_image.run(session, ["0", "any"], settings=Settings(seed=4))
    assert [line["pixels"] for line in lines] == [one["pixels"] for one in want]
    assert (tmp_path / "x.png").stat().st_size > 100
    refused = isoformer("run", graphs.package.path, "0", "--seed", "4")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "all in its number" in refused.stderr


def test_the_command_in_a_package_draws(session: Session, graphs: Graphs) -> None:
    for made in (session, graphs):
        text = tasks.example(made.package.task)
        assert f"isoformer run . {text} " in (made.package.path / "README.md").read_text()
        assert generate_image.run(made, [text])[0]["input"] == text
