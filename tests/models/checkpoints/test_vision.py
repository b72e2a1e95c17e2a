"""ViT and DeiT folders against `transformers`, which made them from random configurations."""

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

SIZES = {
    "hidden_size": 33,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 53,
    "image_size": 20,
    "patch_size": 4,
}
KINDS = {"vit": ("ViT", transformers.ViTConfig), "deit": ("DeiT", transformers.DeiTConfig)}
IMAGES = {"native": (20, 20), "larger": (32, 32), "smaller": (8, 8), "wide": (12, 40), "high": (28, 4)}
HEADS = ("Model", "ForImageClassification")


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


def theirs(kind: str, head: str = "Model", arguments: dict[str, Any] | None = None, **options: Any) -> Any:
    """A model of `transformers` with random weights everywhere: what is zero or one would hide errors."""
    name, config = KINDS[kind]
    made = config(**SIZES | {"num_labels": 5} | options)
    model = getattr(transformers, name + head)(made, **arguments or {}).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        norm = re.search(r"(?i)layer_?norm.*weight", parameter_name)
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3, generator=generator)
    return model.requires_grad_(False)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def pixels(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def edit(folder: Path, file: str = "config.json", **settings: Any) -> Path:
    path = folder / file
    config = (json.loads(path.read_text()) if path.exists() else {}) | settings
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def refusal(path: Path, task: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        checkpoints.read(path, task)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(have: Tensor, want: Tensor, atol: float) -> None:
    assert want.std() > 0.05  # an answer that hardly varies would prove little
    torch.testing.assert_close(have, want, atol=atol, rtol=0)


@pytest.mark.parametrize("size", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_answers_at_any_size(tmp_path, kind, head, size):
    model = theirs(kind, head)
    ours = checkpoints.read(saved(model, tmp_path)).model()
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        feed = pixels(size).to(dtype)
        want = copy.deepcopy(model).to(dtype)(feed, interpolate_pos_encoding=size != IMAGES["native"])
        have = copy.deepcopy(ours).to(dtype)(feed)
        if head == "Model":
            assert list(have) == ["last_hidden_state", "image_embeds", "pooler_output"]
            same(have["last_hidden_state"], want.last_hidden_state, atol)
            same(have["pooler_output"], want.pooler_output, atol)
            same(have["image_embeds"], nn.functional.normalize(want.last_hidden_state[:, 0]), atol)
        else:
            same(have["logits"], want.logits, atol)


def test_the_teacher_and_the_class_token_decide_together(tmp_path):
    model = theirs("deit", "ForImageClassificationWithTeacher")
    ours = checkpoints.read(saved(model, tmp_path))
    assert ours.config.teacher
    feed = pixels((20, 20)).double()
    same(ours.model().double()(feed)["logits"], model.double()(feed).logits, 1e-12)
    embed = checkpoints.read(tmp_path, "embed-image").model().double()(feed)
    same(embed["last_hidden_state"], model.deit(feed).last_hidden_state, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"qkv_bias": False, "hidden_act": "gelu_new"},
        {"pooler_output_size": 17, "pooler_act": "relu", "layer_norm_eps": 1e-3},
        {"image_size": [12, 20]},
        {"num_channels": 1},
    ],
    ids=str,
)
def test_settings(tmp_path, options):
    model = theirs("vit", **options)
    config = edit(saved(model, tmp_path), "preprocessor_config.json", image_mean=[0.5], image_std=[0.5])
    ours = checkpoints.read(config).model().double()
    channels, size = options.get("num_channels", 3), tuple(options.get("image_size", (20, 20)))
    feed = pixels(size).double()[:, :channels]
    want, have = model.double()(feed), ours(feed)
    same(have["last_hidden_state"], want.last_hidden_state, 1e-12)
    same(have["pooler_output"], want.pooler_output, 1e-12)


def test_without_a_pooler(tmp_path):
    model = theirs("vit", arguments={"add_pooling_layer": False})
    ours = checkpoints.read(saved(model, tmp_path))
    assert ours.config.pooler_size is None
    assert list(ours.model()(pixels((20, 20)))) == ["last_hidden_state", "image_embeds"]


def test_labels_are_carried(tmp_path):
    model = theirs("vit", "ForImageClassification", num_labels=3, id2label={0: "cat", 1: "dog", 2: "cow"})
    assert checkpoints.read(saved(model, tmp_path)).config.labels == ("cat", "dog", "cow")


def test_a_head_of_another_kind_is_named_and_the_rest_can_be_read(tmp_path):
    model = theirs("vit", "ForMaskedImageModeling", encoder_stride=4)
    path = saved(model, tmp_path)
    message = refusal(path)
    assert "ViTForMaskedImageModeling is not supported; name a --task (embed-image, classify-image)" in message
    found = checkpoints.read(path, "embed-image")
    assert "vit.embeddings.mask_token" in found.unused
    feed = pixels((20, 20)).double()
    same(found.model().double()(feed)["last_hidden_state"], model.vit.double()(feed).last_hidden_state, 1e-12)


# how pictures are prepared

PHOTO = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8).repeat(2, 0).repeat(3, 1)


def prepared(path: Path, picture: np.ndarray) -> np.ndarray:
    ours: Any = checkpoints.read(path).model()
    return ours.graph("preprocessor")(torch.from_numpy(picture)[None])["pixel_values"][0].numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("picture", [PHOTO, PHOTO[:9, :13], PHOTO[:20, :20]], ids=["shrinks", "grows", "stays"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vit", {"size": {"height": 20, "width": 20}}),
        ("vit", {"size": {"height": 24, "width": 16}, "resample": 3, "image_std": [0.2, 0.3, 0.4]}),
        ("vit", {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": {"height": 20, "width": 20}}),
        ("vit", {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 28, "width": 36}}),
        ("deit", {"size": {"height": 25, "width": 23}, "crop_size": {"height": 20, "width": 20}}),
        ("vit", {"do_rescale": False, "do_normalize": False, "size": {"height": 20, "width": 20}}),
    ],
    ids=str,
)
def test_pixels_are_prepared_as_the_library_does_to_a_level_of_255(tmp_path, kind, settings, picture):
    """It resizes with Pillow, which rounds to whole levels twice, and begins with the direction that shrinks most."""
    processor = getattr(transformers, f"{KINDS[kind][0]}ImageProcessorPil")(**settings)
    path = saved(theirs(kind), tmp_path)
    processor.save_pretrained(path)
    want = np.asarray(processor(picture)["pixel_values"][0])
    have = prepared(path, picture)
    assert have.shape == want.shape
    level = 1.0 if settings.get("do_rescale") is False else 1 / 255 / min(settings.get("image_std", [0.224]))
    assert np.abs(have - want).max() <= 1.6 * level
    assert np.abs(have - want).mean() <= 0.4 * level


def test_the_file_of_the_preprocessing_is_carried(tmp_path):
    path = saved(theirs("vit"), tmp_path)
    found = checkpoints.read(path)
    assert "has no preprocessor_config.json" in found.notes[0]
    edit(path, "preprocessor_config.json", size=20)
    found = checkpoints.read(path)
    assert not found.notes
    assert path / "preprocessor_config.json" in found.files
    assert found.config.preprocess.resize == (20, 20)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resample": 1}, "resample 1 is not one of"),
        ({"size": {"longest_edge": 20}}, "size {'longest_edge': 20} is not supported"),
        ({"size": {"shortest_edge": 20}}, "the size is open"),
        ({"image_mean": [0.5, 0.5]}, "mean (0.5, 0.5) and std"),
        ({"size": 22}, "multiples of patch_size 4"),
        ({"size": 80}, "has (20, 20) patches; max_rows and max_columns are (16, 16)"),
        ({"image_std": [0, 1, 1]}, "std none that is 0"),
    ],
    ids=str,
)
def test_a_preprocessing_that_is_not_supported(tmp_path, settings, said):
    assert said in refusal(edit(saved(theirs("vit"), tmp_path), "preprocessor_config.json", **settings))


# what cannot be read


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patch_size": [4, 2]}, "patches are square"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of"),
        ({"intermediate_size": None}, "it lacks intermediate_size"),
        ({"image_size": 22}, "multiples of patch_size 4"),
        (
            {"image_size": 24},
            "embeddings.position_embeddings of shape (1, 26, 33) where config.json asks for (1, 37, 33)",
        ),
        ({"num_attention_heads": 7}, "hidden_size 33 is not a multiple of num_heads 7"),
        ({"num_hidden_layers": 3}, "lacks the tensors encoder.layer.2."),
        ({"num_hidden_layers": 1}, "has the unknown tensors encoder.layer.1."),
    ],
    ids=str,
)
def test_a_configuration_of_other_weights(tmp_path, settings, said):
    assert said in refusal(edit(saved(theirs("vit"), tmp_path), **settings))


def test_tensors_are_named_as_in_the_file(tmp_path):
    path = saved(theirs("deit", "ForImageClassification"), tmp_path)
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name in ("deit.embeddings.distillation_token", "deit.layernorm.bias", "classifier.weight"):
        save_file({n: t for n, t in tensors.items() if n != name}, file)
        assert refusal(path) == f"{path} lacks the tensor {name}"
    save_file(tensors | {"deit.extra": torch.ones(2)}, file)
    assert refusal(path) == f"{path} has the unknown tensor deit.extra"
    assert "task 'embed' is not one of embed-image, classify-image" in refusal(path, "embed")


@pytest.mark.parametrize(("kind", "mean", "std"), [("vit", 0.5, 0.5), ("deit", 0.449, 0.226)])
def test_grey_pictures_have_the_average_of_the_colours(tmp_path, kind, mean, std):
    model = theirs(kind, num_channels=1)
    checkpoint = checkpoints.read(saved(model, tmp_path))
    prepared = checkpoint.config.preprocess
    assert (prepared.mean, prepared.std) == (pytest.approx((mean,), abs=1e-3), pytest.approx((std,), abs=1e-3))
    feed = pixels((12, 28))[:, :1]
    want = model(feed, interpolate_pos_encoding=True).last_hidden_state
    same(checkpoint.model()(feed)["last_hidden_state"], want, 1e-5)
