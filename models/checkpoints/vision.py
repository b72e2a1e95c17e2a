"""ViT and DeiT folders of the Hugging Face layout → family `vision`.

Sources: the config.json, preprocessor_config.json and tensor names that `transformers` writes for these model types.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoformer.models.checkpoints import Checkpoint, CheckpointError
from isoformer.models.checkpoints.bert import labels
from isoformer.models.checkpoints.folder import (
    ACTIVATIONS,
    assign,
    carried_files,
    model_type,
    read_json,
    read_tensors,
    refuse_unknown,
)
from isoformer.models.families.vision import Config, Model
from isoformer.models.images import Preprocessing

FAMILY = "vision"
PROCESSOR = "preprocessor_config.json"
SETTINGS = {
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}
TASKS = {"Model": "embed-image", "ForImageClassification": "classify-image"}
TEACHER = "ForImageClassificationWithTeacher"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
# Pillow's numbers of filters.
RESAMPLE = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Kind:
    """A model type: its special tokens by their tensors, and what preprocessor_config.json leaves unsaid."""

    special: tuple[str, ...]
    processor: dict[str, Any]


KINDS = {
    "vit": Kind(("cls_token",), {"do_center_crop": False, "resample": 2, **HALVES}),
    "deit": Kind(("cls_token", "distillation_token"), {"do_center_crop": True, "resample": 3, **IMAGENET}),
}
# Our modules → theirs, `{i}` is the number of the layer.
_LAYER = "encoder.layer.{i}"
BODY = {
    "encoder.embeddings.patches": "embeddings.patch_embeddings.projection",
    "encoder.blocks.{i}.attention.query_linear": f"{_LAYER}.attention.attention.query",
    "encoder.blocks.{i}.attention.key_linear": f"{_LAYER}.attention.attention.key",
    "encoder.blocks.{i}.attention.value_linear": f"{_LAYER}.attention.attention.value",
    "encoder.blocks.{i}.attention.out_linear": f"{_LAYER}.attention.output.dense",
    "encoder.blocks.{i}.attention_norm": f"{_LAYER}.layernorm_before",
    "encoder.blocks.{i}.feed_forward.up": f"{_LAYER}.intermediate.dense",
    "encoder.blocks.{i}.feed_forward.down": f"{_LAYER}.output.dense",
    "encoder.blocks.{i}.feed_forward_norm": f"{_LAYER}.layernorm_after",
    "final_norm": "layernorm",
    "head.pooler": "pooler.dense",
}
TABLE = "embeddings.position_embeddings"


def accepts(path: Path) -> bool:
    return model_type(path) in KINDS


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for `task` (embed-image or classify-image; by default the one that it was saved for).

    Raises CheckpointError for a configuration that the family cannot express, and for tensors that
    are missing, misshapen or unknown, by their names in the file.
    """
    settings = read_json(path / "config.json")
    name = settings["model_type"]
    kind, prefix, content = KINDS[name], f"{name}.", read_tensors(path)
    original = {theirs.removeprefix(prefix): theirs for theirs in content}
    tensors = {name: content[theirs] for name, theirs in original.items()}
    prefixed = any(theirs.startswith(prefix) for theirs in content)
    chosen, teacher = _task(path, settings, task)
    config = _config(path, settings, kind, chosen, teacher, "pooler.dense.weight" in tensors)

    def in_file(inner: str) -> str:
        in_body = inner.startswith(("embeddings.", "encoder.", "layernorm."))
        return original.get(inner, prefix + inner if prefixed and in_body else inner)

    table = BODY | {"head.classifier": "cls_classifier" if teacher else "classifier"}
    table["head.teacher"] = "distillation_classifier"
    try:
        with torch.device("meta"):
            expected = Model(config).state_dict()
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path / 'config.json'}: {error}") from None
    special = dict.fromkeys((f"embeddings.{token}" for token in kind.special), (1, 1, config.hidden_size))
    rows, columns = config.grid
    length = len(special) + rows * columns
    shapes = special | {TABLE: (1, length, config.hidden_size)}
    found = assign({n: torch.empty(s, device="meta") for n, s in shapes.items()}, tensors, str, path, in_file)
    state = embedding_tables(torch.cat([found[inner][0] for inner in special]), found[TABLE][0], config)
    others = {ours: value for ours, value in expected.items() if ours not in state}
    names = {ours: their_name(ours, table) for ours in others}
    state |= assign(others, tensors, names.__getitem__, path, in_file)
    left = tensors.keys() - {*names.values(), *shapes}
    known = {"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}
    if task and prefixed:  # part of a model was asked for: heads of other kinds stand outside the prefix
        known |= {inner for inner, theirs in original.items() if not theirs.startswith(prefix)}
    refuse_unknown((original[inner] for inner in left - known), path)
    unused = tuple(sorted(original[inner] for inner in left))
    source = {"name": path.resolve().name, "model_type": name, "unused_tensors": list(unused)}
    return Checkpoint(FAMILY, config, state, image_files(path), unused, source, processor_notes(path))


def their_name(ours: str, table: Mapping[str, str]) -> str:
    """What the file calls our tensor, of a table of modules."""
    module, _, leaf = ours.rpartition(".")
    layer = re.search(r"\.(\d+)\.", ours)
    template = re.sub(r"\.\d+\.", ".{i}.", module)
    return f"{table[template]}.{leaf}".replace("{i}", layer[1] if layer else "")


def embedding_tables(special: Tensor, table: Tensor, config: Config, prefix: str = "encoder.") -> dict[str, Tensor]:
    """The special tokens (n, E) and a table of positions of theirs and the patches' (n + R C, E) as our tensors."""
    count = len(special)
    where = f"{prefix}embeddings"
    return {
        f"{where}.special": special,
        f"{where}.special_positions": table[:count],
        f"{where}.positions.weight": table[count:].unflatten(0, config.grid),
    }


def image_files(path: Path) -> tuple[Path, ...]:
    """What the package carries along."""
    return (*carried_files(path), *([path / PROCESSOR] if (path / PROCESSOR).exists() else []))


def processor_notes(path: Path) -> tuple[str, ...]:
    """A line for the user where the folder does not say how pictures are prepared."""
    if (path / PROCESSOR).exists():
        return ()
    return (f"{path} has no {PROCESSOR}: pictures are prepared as this kind of model usually has it",)


def _task(path: Path, settings: dict[str, Any], task: str | None) -> tuple[str, bool]:
    """The task, and whether there are two classifiers, from config.json's `architectures`."""
    if task not in (None, *TASKS.values()):
        raise CheckpointError(f"task {task!r} is not one of {', '.join(TASKS.values())}")
    name = (settings.get("architectures") or ["Model"])[0]
    teacher = name.endswith(TEACHER)
    saved = "classify-image" if teacher else next((t for end, t in TASKS.items() if name.endswith(end)), None)
    if task is None and saved is None:
        raise CheckpointError(
            f"{path}: {name} is not supported; name a --task ({', '.join(TASKS.values())}) to read part"
        )
    return task or saved or "", teacher and task in (None, "classify-image")


def _config(path: Path, settings: dict[str, Any], kind: Kind, task: str, teacher: bool, pooler: bool) -> Config:
    where = path / "config.json"
    try:
        size = settings.get("pooler_output_size") or settings.get("hidden_size")
        image = image_settings(settings)
        return Config(
            **setting_values(settings, SETTINGS),
            **image,
            activation=activation_name(settings, "hidden_act"),
            qkv_bias=settings.get("qkv_bias", True),
            special_tokens=len(kind.special),  # pyright: ignore[reportArgumentType]
            task=task,  # pyright: ignore[reportArgumentType]
            teacher=teacher,
            pooler_size=size if pooler and task == "embed-image" else None,
            pooler_activation=activation_name(settings, "pooler_act", "tanh"),
            preprocessing=preprocessing(path, image["image_size"], kind.processor, image["num_channels"]),
            **(labels(settings) if task == "classify-image" else {}),
        )
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where}: {error}") from None


def setting_values(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The settings under our names; ValueError for those that are not there."""
    lacking = [theirs for theirs in names.values() if settings.get(theirs) is None]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return {ours: settings[theirs] for ours, theirs in names.items()}


def activation_name(settings: Mapping[str, Any], key: str, usual: str = "gelu") -> str:
    """Our name of an activation; ValueError for one that is not known."""
    known = ACTIVATIONS | {name: name for name in ("tanh", "quick_gelu")}
    name = settings.get(key, usual)
    if name not in known:
        raise ValueError(f"{key} {name!r} is not one of {', '.join(known)}")
    return known[name]


def image_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """image_size, patch_size and num_channels; ValueError for patches that are not square."""
    image, patch = (settings.get(key, usual) for key, usual in (("image_size", 224), ("patch_size", 16)))
    if isinstance(patch, list):
        if len(set(patch)) != 1:
            raise ValueError(f"patch_size {patch} is not supported; patches are square")
        patch = patch[0]
    return {
        "image_size": tuple(image) if isinstance(image, list) else (image, image),
        "patch_size": patch,
        "num_channels": settings.get("num_channels", 3),
    }


def preprocessing(path: Path, image_size: tuple[int, int], usual: Mapping[str, Any], channels: int) -> Preprocessing:
    """The folder's preprocessor_config.json, or without one the kind's usual steps to image_size.

    usual: what the library takes for keys that the file leaves out; "shortest" among them where a plain number as
    size means the shorter side. Its mean and std are of red, green and blue: another number of `channels` has the
    average of the three. Raises CheckpointError for steps that are not supported.
    """
    file = path / PROCESSOR
    if not file.exists():
        mean, std = (tuple(usual[key]) for key in ("image_mean", "image_std"))
        if channels != len(mean):
            mean, std = ((sum(values) / len(values),) for values in (mean, std))
        return Preprocessing(image_size, None, RESAMPLE[usual["resample"]], 1 / 255, mean, std)  # pyright: ignore[reportArgumentType]
    given = {**usual, **{key: value for key, value in read_json(file).items() if value is not None}}
    try:
        if given["resample"] not in RESAMPLE:
            raise ValueError(f"resample {given['resample']!r} is not one of {RESAMPLE}")
        return Preprocessing(
            resize=_size(given.get("size", list(image_size)), shortest=usual.get("shortest", False))
            if given.get("do_resize", True)
            else None,
            crop=_crop(given.get("crop_size", list(image_size))) if given["do_center_crop"] else None,
            resample=RESAMPLE[given["resample"]],  # pyright: ignore[reportArgumentType]
            rescale=given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0,
            mean=tuple(given["image_mean"]) if given.get("do_normalize", True) else (0.0,),
            std=tuple(given["image_std"]) if given.get("do_normalize", True) else (1.0,),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def _size(size: Any, *, shortest: bool = False) -> tuple[int, int] | int:
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        return size["height"], size["width"]
    if isinstance(size, list) and len(size) == 2:
        return size[0], size[1]
    if type(size) is int:
        return size if shortest else (size, size)
    raise ValueError(f"size {size!r} is not supported; it has height and width, or shortest_edge")


def _crop(size: Any) -> tuple[int, int]:
    found = _size(size)
    if isinstance(found, int):
        raise ValueError(f"crop_size {size!r} is not supported; it has height and width")
    return found
