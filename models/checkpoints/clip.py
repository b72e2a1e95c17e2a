"""CLIP folders of the Hugging Face layout → family `contrastive`.

Source: the config.json, preprocessor_config.json and tensor names that `transformers` writes for this model type.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isoformer.models.checkpoints import Checkpoint, CheckpointError
from isoformer.models.checkpoints import vision as vision_folder
from isoformer.models.checkpoints.folder import assign, model_type, read_json, read_tensors, refuse_unknown
from isoformer.models.families import vision
from isoformer.models.families.contrastive import Config, Model

FAMILY = "contrastive"
KINDS = ("clip",)
TEXT_SETTINGS = {**vision_folder.SETTINGS, "vocab_size": "vocab_size", "max_positions": "max_position_embeddings"}
# What the library takes for settings that the file leaves out, and steps of the preprocessor.
_USUAL = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT_USUAL = _USUAL | {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
TEXT_USUAL |= {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
IMAGE_USUAL = _USUAL | {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 32}
PROCESSOR = {
    "do_center_crop": True,
    "resample": 3,
    "shortest": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# Configurations with this end token were made before it was put right, and read a text at its highest id.
OLD_EOS = 2


def _tower(ours: str, theirs: str) -> dict[str, str]:
    """Our modules → theirs, `{i}` is the number of the layer."""
    block, layer = f"{ours}.blocks.{{i}}", f"{theirs}.encoder.layers.{{i}}"
    linears = {"query_linear": "q_proj", "key_linear": "k_proj", "value_linear": "v_proj", "out_linear": "out_proj"}
    return {f"{block}.attention.{a}": f"{layer}.self_attn.{b}" for a, b in linears.items()} | {
        f"{block}.attention_norm": f"{layer}.layer_norm1",
        f"{block}.feed_forward.up": f"{layer}.mlp.fc1",
        f"{block}.feed_forward.down": f"{layer}.mlp.fc2",
        f"{block}.feed_forward_norm": f"{layer}.layer_norm2",
    }


MODULES = {
    **_tower("text", "text_model"),
    **_tower("image.encoder", "vision_model"),
    "text.tokens": "text_model.embeddings.token_embedding",
    "text.positions": "text_model.embeddings.position_embedding",
    "text.final_norm": "text_model.final_layer_norm",
    "text.projection": "text_projection",
    "image.encoder.embeddings.patches": "vision_model.embeddings.patch_embedding",
    "image.encoder.embedding_norm": "vision_model.pre_layrnorm",
    "image.final_norm": "vision_model.post_layernorm",
    "image.projection": "visual_projection",
}
CLASS, TABLE = "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"
SCALE = "logit_scale"
# Buffers that older versions saved, numbers that the library makes anew.
BUFFERS = {f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")}


def accepts(path: Path) -> bool:
    return model_type(path) in KINDS


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for the task match-image-text, the only one.

    Raises CheckpointError for a configuration that the family cannot express, and for tensors that
    are missing, misshapen or unknown, by their names in the file.
    """
    if task not in (None, "match-image-text"):
        raise CheckpointError(f"task {task!r} is not match-image-text, the one that there is for clip")
    settings, tensors = read_json(path / "config.json"), read_tensors(path)
    name = (settings.get("architectures") or ["CLIPModel"])[0]
    if name != "CLIPModel":
        raise CheckpointError(f"{path}: {name} is not supported; a CLIPModel with both towers is")
    try:
        config = _config(path, settings)
        with torch.device("meta"):
            expected = Model(config).state_dict()
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path / 'config.json'}: {error}") from None
    image = config.image
    rows, columns = image.grid
    shapes = {CLASS: (image.hidden_size,), TABLE: (1 + rows * columns, image.hidden_size)}
    found = assign({n: torch.empty(s, device="meta") for n, s in shapes.items()}, tensors, str, path)
    state = vision_folder.embedding_tables(found[CLASS][None], found[TABLE], image, "image.encoder.")
    others = {ours: value for ours, value in expected.items() if ours not in state}
    names = {ours: SCALE if ours == SCALE else vision_folder.their_name(ours, MODULES) for ours in others}
    state |= assign(others, tensors, names.__getitem__, path)
    refuse_unknown(tensors.keys() - {*names.values(), *shapes} - BUFFERS, path)
    source = {"name": path.resolve().name, "model_type": "clip"}
    files, notes = vision_folder.image_files(path), vision_folder.processor_notes(path)
    return Checkpoint(FAMILY, config, state, files, source=source, notes=notes)


def _config(path: Path, settings: Mapping[str, Any]) -> Config:
    """ValueError or TypeError for what the family cannot express."""
    text = TEXT_USUAL | {key: value for key, value in (settings.get("text_config") or {}).items() if value is not None}
    image = IMAGE_USUAL | {
        key: value for key, value in (settings.get("vision_config") or {}).items() if value is not None
    }
    sizes = vision_folder.image_settings(image)
    eos = text["eos_token_id"]
    return Config(
        **vision_folder.setting_values(text, TEXT_SETTINGS),
        projection_size=settings.get("projection_dim", 512),
        eos_token_id=None if eos == OLD_EOS else eos,
        activation=vision_folder.activation_name(text, "hidden_act"),
        image=vision.Config(
            **vision_folder.setting_values(image, vision_folder.SETTINGS),
            **sizes,
            patch_bias=False,
            embedding_norm=True,
            activation=vision_folder.activation_name(image, "hidden_act"),
            preprocessing=vision_folder.preprocessing(path, sizes["image_size"], PROCESSOR, sizes["num_channels"]),
        ),
    )
