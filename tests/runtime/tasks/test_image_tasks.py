"""classify-image and embed-image on packages of random weights and real picture files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isoformer.models.families import vision
from isoformer.models.images import Preprocessing
from isoformer.runtime import Graphs, InputError
from isoformer.runtime.tasks import classify_image, embed_image
from tests.conftest import export_small

LABELS = ("cat", "dog", "cow")
SMALL = dataclasses.replace(
    vision.TINY,
    image_size=(6, 6),
    pooler_size=None,
    max_rows=3,
    max_columns=3,
    preprocessing=Preprocessing((6, 6)),
)


def package(folder: Path, **changes: object) -> tuple[vision.Model, Graphs]:
    config = dataclasses.replace(SMALL, **changes)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(5)
    model = vision.Model(config).eval()
    with torch.no_grad():  # answers that hardly vary would prove little
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    path = export_small(model, vision.signature(config), folder / "package", task=vision.task(config)).path
    return model, Graphs(path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return package(tmp_path_factory.mktemp("classify"), task="classify-image", labels=LABELS)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return package(tmp_path_factory.mktemp("embed"), num_channels=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(2)
    made = []
    for number in range(19):  # more than a batch
        pixels = rng.integers(0, 256, (rng.integers(1, 20), rng.integers(1, 20), 3), np.uint8)
        made.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(made[-1])
    return [str(path) for path in made]


def in_torch(model: vision.Model, path: str, mode: str) -> dict[str, torch.Tensor]:
    pixels = np.asarray(Image.open(path).convert(mode))
    pixels = torch.from_numpy(pixels.reshape(1, *pixels.shape[:2], -1).copy())
    with torch.no_grad():
        return model(model.graph("preprocessor")(pixels)["pixel_values"])


def test_classes(classifier, files):
    model, graphs = classifier
    done = []
    results = classify_image.run(graphs, files, progress=done.append)
    assert sum(done) == len(files)
    assert json.loads(json.dumps(results)) == results
    for path, result in zip(files, results, strict=True):
        assert list(result) == ["input", "label", "scores"]
        assert result["input"] == path
        scores = in_torch(model, path, "RGB")["logits"][0].softmax(-1)
        np.testing.assert_allclose(list(result["scores"].values()), scores, atol=1e-5)
        assert result["label"] == LABELS[int(scores.argmax())]
    assert len({result["label"] for result in results}) > 1


def test_embeddings_of_a_grey_model(embedder, files):
    model, graphs = embedder
    results = embed_image.run(graphs, files[:5])
    for path, result in zip(files, results, strict=False):
        assert list(result) == ["input", "embedding"]
        np.testing.assert_allclose(result["embedding"], in_torch(model, path, "L")["image_embeds"][0], atol=1e-5)


def test_a_file_that_is_none(classifier, files, tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        classify_image.run(classifier[1], [files[0], str(tmp_path / "none.png")])


def test_the_command_line(classifier, files, isoformer):
    path = classifier[1].package.path
    said = isoformer("run", path, files[0], files[1])
    assert said.returncode == 0, said.stderr
    assert "picture" in said.stdout
    said = isoformer("run", path, "--json", files[0])
    assert json.loads(said.stdout)["label"] in LABELS
    said = isoformer("run", path, path / "README.md")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "is not a picture" in said.stderr
