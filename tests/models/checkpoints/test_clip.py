"""CLIP folders against `transformers`, which made them from random configurations."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isoformer.models import checkpoints
from isoformer.models.checkpoints import CheckpointError

EOS = 7
TEXT = {
    "vocab_size": 41,
    "hidden_size": 21,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 29,
    "max_position_embeddings": 13,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
IMAGE = {
    "hidden_size": 33,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 53,
    "image_size": 20,
    "patch_size": 4,
}
IMAGES = {"native": (20, 20), "larger": (32, 32), "wide": (12, 40), "high": (28, 4)}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


def theirs(text: dict[str, Any] | None = None, image: dict[str, Any] | None = None) -> Any:
    """A model of `transformers` with random weights everywhere: what is zero or one would hide errors."""
    config = transformers.CLIPConfig(
        text_config=TEXT | (text or {}), vision_config=IMAGE | (image or {}), projection_dim=17
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        norm = re.search(r"norm.*weight|logit_scale", name)
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3, generator=generator)
    return model.requires_grad_(False)


def saved(model: Any, folder: Path, **settings: Any) -> Path:
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def texts(length: int, batch: int = 3) -> dict[str, Tensor]:
    """Ends at different places; behind them the padding, which is the end token too."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(8, 41, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(batch):
        end = max(length - 1 - 2 * row, 0)
        ids[row, end:] = EOS
        mask[row, end + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def loaded(path: Path) -> Any:
    return checkpoints.read(path).model()


def refusal(path: Path, task: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path, task)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("kind", "length"), [("native", 1), ("larger", 4), ("wide", 9), ("high", 13)])
def test_same_answers_at_any_size_and_length(tmp_path, kind, length):
    model = theirs()
    ours = loaded(saved(model, tmp_path))
    pictures = torch.randn(2, 3, *IMAGES[kind], generator=torch.Generator().manual_seed(1))
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        feeds = texts(length) | {"pixel_values": pictures.to(dtype)}
        want = copy.deepcopy(model).to(dtype)(**feeds, interpolate_pos_encoding=True)
        mine = copy.deepcopy(ours).to(dtype)
        have = mine(**feeds)
        assert list(have) == ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
        for name, value in have.items():
            assert want[name].std() > 0.05
            torch.testing.assert_close(value, want[name], atol=atol, rtol=0)
        for graph, output, inputs in (
            ("text_model", want.text_model_output, ("input_ids", "attention_mask")),
            ("vision_model", want.vision_model_output, ("pixel_values",)),
        ):
            part = mine.graph(graph)(**{name: feeds[name] for name in inputs})
            torch.testing.assert_close(part["last_hidden_state"], output.last_hidden_state, atol=10 * atol, rtol=0)


@pytest.mark.parametrize("options", [{"eos_token_id": 2}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}], ids=str)
def test_settings_of_the_text(tmp_path, options):
    model = theirs(options)
    feeds = texts(9)
    if "eos_token_id" in options:  # the highest id ends the text
        feeds["input_ids"] = feeds["input_ids"].where(feeds["input_ids"] != EOS, 40)
    ours = loaded(saved(model, tmp_path)).double()
    want = model.double().get_text_features(**feeds).pooler_output
    have = ours.graph("text_model")(**feeds)["text_embeds"]
    torch.testing.assert_close(have, nn.functional.normalize(want, dim=-1), atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_prepared_as_the_library_does(tmp_path):
    """The shorter side, bicubic, and the middle; a level is what Pillow rounds to."""
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 20, "width": 20})
    path = saved(theirs(), tmp_path)
    processor.save_pretrained(path)
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    want = np.asarray(processor(picture)["pixel_values"][0])
    graph = loaded(path).graph("preprocessor")
    have = graph(torch.from_numpy(picture)[None])["pixel_values"][0].numpy()
    assert have.shape == want.shape == (3, 20, 20)
    assert np.abs(have - want).max() <= 1.6 / 255 / 0.26


def test_what_cannot_be_read(tmp_path):
    path = saved(theirs(), tmp_path)
    assert "task 'embed' is not match-image-text" in refusal(path, "embed")
    file, tensors = path / "model.safetensors", load_file(path / "model.safetensors")
    for name in ("logit_scale", "vision_model.embeddings.class_embedding", "text_projection.weight"):
        save_file({n: t for n, t in tensors.items() if n != name}, file)
        assert refusal(path) == f"{path} lacks the tensor {name}"
    save_file(tensors | {"extra": torch.ones(2)}, file)
    assert refusal(path) == f"{path} has the unknown tensor extra"
    save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(13)[None]}, file)
    assert checkpoints.read(path).config.eos_token_id == EOS
    assert "vocabulary has 0 to 40" in refusal(saved(theirs(), path, text_config=TEXT | {"eos_token_id": 41}))
    assert "where config.json asks for (19, 21)" in refusal(saved(theirs(), path, projection_dim=19))
    assert "CLIPTextModel is not supported" in refusal(saved(theirs(), path, architectures=["CLIPTextModel"]))
