"""match-image-text: the shares of the texts for each picture, from both towers, and mistakes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from isoformer.models.families import contrastive
from isoformer.models.images import Preprocessing
from isoformer.runtime import Graphs, InputError
from isoformer.runtime.tasks import match_image_text
from tests.conftest import export_small

WORDS = ("[PAD]", "[UNK]", "[EOS]", "red", "green", "blue", "thing")
TEXTS = ("red thing", "green", "blue thing thing thing")


@pytest.fixture(scope="module")
def matcher(tmp_path_factory) -> tuple[contrastive.Model, Graphs, Path]:
    folder = tmp_path_factory.mktemp("match")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])  # pyright: ignore[reportAttributeAccessIssue]
    made.save(str(folder / "tokenizer.json"))
    tiny = contrastive.TINY
    image = dataclasses.replace(
        tiny.image, image_size=(4, 4), max_rows=2, max_columns=2, preprocessing=Preprocessing((4, 4))
    )
    config = dataclasses.replace(tiny, vocab_size=len(WORDS), max_positions=5, eos_token_id=2, image=image)
    torch.manual_seed(3)
    model = contrastive.Model(config).eval()
    with torch.no_grad():  # answers that hardly vary would prove little
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    files = [folder / "tokenizer.json"]
    task = contrastive.task(config)
    path = export_small(model, contrastive.signature(config), folder / "package", task=task, files=files).path
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (9 + number, 5), colour).save(folder / f"{colour}.png")
    return model, Graphs(path), folder


def test_shares_of_the_texts(matcher):
    model, graphs, folder = matcher
    files = [str(folder / f"{colour}.png") for colour in ("red", "green", "blue")]
    done = []
    results = match_image_text.run(graphs, [files[0], *TEXTS, *files[1:]], progress=done.append)
    assert sum(done) == 6
    assert json.loads(json.dumps(results)) == results
    assert [result["input"] for result in results] == files
    ids = torch.tensor([[3, 6, 2, 0, 0], [4, 2, 0, 0, 0], [5, 6, 6, 6, 2]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    for file, result in zip(files, results, strict=True):
        pixels = torch.from_numpy(np.asarray(Image.open(file))[None].copy())
        with torch.no_grad():
            values = model.graph("preprocessor")(pixels)["pixel_values"]
            want = model(ids, mask, values)["logits_per_image"][0].softmax(-1)
        assert list(result["scores"]) == list(TEXTS)
        np.testing.assert_allclose(list(result["scores"].values()), want, atol=1e-5)
        assert result["label"] == TEXTS[int(want.argmax())]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["red"], "there is no picture file"),
        (["red.png"], "there is no text"),
        (["red.png", "rad.png", "a red thing"], "rad.png is not a file"),
        (["red.png", "red red red red red"], "has 6 tokens; this model takes 5 at most"),
    ],
)
def test_mistakes(matcher, inputs, said):
    _, graphs, folder = matcher
    with pytest.raises(InputError, match=said):
        match_image_text.run(graphs, [str(folder / text) if text == "red.png" else text for text in inputs])


def test_a_text_may_be_cut(matcher):
    _, graphs, folder = matcher
    (result,) = match_image_text.run(graphs, [str(folder / "red.png"), "red " * 9, "green"], truncate=True)
    assert sum(result["scores"].values()) == pytest.approx(1)
