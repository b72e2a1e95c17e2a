"""CTranslate2's Whisper models (model.bin, version 6) → family `speech`, weights as float32.

Tensors are put under the names of the Hugging Face layout and read as such a folder is (`whisper.assemble`);
configurations are written for the package in that layout too.

Source of the container: CTranslate2's python/ctranslate2/specs/model_spec.py, and of the names: its
specs/whisper_spec.py (https://github.com/OpenNMT/CTranslate2).
"""

import json
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoformer.models.checkpoints import Checkpoint, CheckpointError, TextFile
from isoformer.models.checkpoints.folder import read_json, refuse_unknown
from isoformer.models.checkpoints.whisper import FAMILY as FAMILY
from isoformer.models.checkpoints.whisper import assemble, special_tokens

FILE, VERSION, SPEC = "model.bin", 6, "WhisperSpec"
HEADER = struct.pack("<I", VERSION)
# The file's number of a dtype → torch's, and numpy's of the same size.
DTYPES = {
    0: (torch.float32, "<f4"),
    1: (torch.int8, "<i1"),
    2: (torch.int16, "<i2"),
    3: (torch.int32, "<i4"),
    4: (torch.float16, "<f2"),
    5: (torch.bfloat16, "<i2"),
}
MAX_AXES = 4
MAX_NAME = 256  # bytes
# Settings that stand among the tensors, with the values that mean what the family computes; None: any.
FLAGS = {
    "decoder/activation": 3,  # gelu
    "decoder/alibi": 0,
    "decoder/alignment_heads": None,
    "decoder/alignment_layer": None,
    "decoder/num_heads": None,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "encoder/num_heads": None,
}
SCALE = "_scale"
# Their modules → the Hugging Face layout's; parts: what one matrix holds, one below the other.
LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
OTHERS = {"conv1": "conv1", "conv2": "conv2", "layer_norm": "layer_norm", "embeddings": "embed_tokens"}
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in the file and how."""

    shape: tuple[int, ...]
    kind: int
    start: int


class ModelFile:
    """The tensors of a model.bin by name, each range checked against the file before it is touched.

    Raises CheckpointError for a file that is cut off, of another version or of another model than Whisper.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise self.error(str(error)) from None
        self._place = 0
        version = self._number("I")
        if version != VERSION:
            raise self.error(f"version {version} is not {VERSION}")
        spec, _revision = self._name(), self._number("I")
        if spec != SPEC:
            raise self.error(f"it is a {spec}, not a {SPEC}")
        self.tensors: dict[str, Stored] = {}
        for _ in range(self._number("I")):
            name = self._name()
            if name in self.tensors:
                raise self.error(f"it has the tensor {name} twice")
            self.tensors[name] = self._tensor(name)
        self.aliases = {self._name(): self._name() for _ in range(self._number("I"))}
        if lost := sorted(name for name, target in self.aliases.items() if target not in self.tensors):
            raise self.error(f"{lost[0]} stands for {self.aliases[lost[0]]}, which is not there")
        if self._place != len(self._data):
            raise self.error(f"it ends at {self._place}, and {len(self._data) - self._place} bytes follow")

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be read as a CTranslate2 model: {problem}")

    def read(self, name: str) -> Tensor:
        """The tensor in float32; of whole numbers with a scale, what they stand for: number / scale of the row."""
        values = self._values(name).float()
        if self.tensors[name].kind not in (1, 2, 3):
            return values
        if name + SCALE not in self.tensors:
            raise self.error(f"the tensor {name} holds whole numbers, and there is no {name}{SCALE}")
        scale = self._values(name + SCALE).float()
        if scale.shape not in (torch.Size([]), values.shape[:1]) or not (scale > 0).all():
            raise self.error(f"{name}{SCALE} of shape {tuple(scale.shape)} is no scale of {tuple(values.shape)}")
        return values / scale.reshape(-1, *(1,) * (values.ndim - 1))

    def scalar(self, name: str) -> int | None:
        """The one number of a setting, None where it is not there."""
        if name not in self.tensors:
            return None
        if self.tensors[name].shape:
            raise self.error(f"{name} of shape {self.tensors[name].shape} is not one number")
        return int(self._values(name))

    def _values(self, name: str) -> Tensor:
        stored = self.tensors[name]
        dtype, numpy_dtype = DTYPES[stored.kind]
        raw = np.frombuffer(self._data, numpy_dtype, math.prod(stored.shape), stored.start).copy()
        return torch.from_numpy(raw).view(dtype).reshape(stored.shape)

    def _tensor(self, name: str) -> Stored:
        axes = self._number("B")
        if axes > MAX_AXES:
            raise self.error(f"the tensor {name} has {axes} axes; there are {MAX_AXES} at most")
        shape = tuple(self._number("I") for _ in range(axes))
        kind, size = self._number("B"), self._number("I")
        if kind not in DTYPES:
            raise self.error(f"the tensor {name} has the dtype {kind}, which is unknown")
        if size != math.prod(shape) * np.dtype(DTYPES[kind][1]).itemsize or not all(shape):
            raise self.error(f"the tensor {name} of shape {shape} and dtype {DTYPES[kind][0]} has {size} bytes")
        start = self._place
        self._skip(size)
        return Stored(shape, kind, start)

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._place:
            raise self.error(
                f"{size} bytes are expected at {self._place}, and the file has {len(self._data)} (is it whole?)"
            )
        self._place += size

    def _number(self, code: str) -> int:
        start = self._place
        self._skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self._data, start)[0]

    def _name(self) -> str:
        """Its length with the byte 0 at its end, and the bytes."""
        length, start = self._number("H"), self._place
        self._skip(length)
        raw = self._data[start : start + length]
        if length > MAX_NAME or not re.fullmatch(rb"[!-~]+\0", raw):
            raise self.error(f"there is no name at {start}")
        return raw[:-1].decode("ascii")


def accepts(path: Path) -> bool:
    """Whether it is a model.bin of version 6, of any model, or a folder with one."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".bin":
        return False
    with file.open("rb") as opened:
        return opened.read(len(HEADER)) == HEADER


def read(path: Path, task: str | None = None) -> Checkpoint:
    """The checkpoint for the task `transcribe`; tokenizer.json and config.json are those beside the file.

    Raises CheckpointError for a file that is damaged or of another model than Whisper, for settings that the family
    cannot express, and for tensors that are missing, misshapen or unknown, by their names in the file.
    """
    file = path / FILE if path.is_dir() else path
    model = ModelFile(file)
    for name, wanted in FLAGS.items():
        value = model.scalar(name) if wanted is not None else None
        if value is not None and value != wanted:
            raise model.error(f"{name} is {value}; {wanted} is supported")
    tensors = _tensors(model)
    settings, generation = _settings(model, tensors), _generation(file.parent, model)
    config = TextFile("config.json", json.dumps({**settings, **generation}, indent=2))
    tokenizer = file.parent / "tokenizer.json"
    files = (config, *([tokenizer] if tokenizer.exists() else []))
    return assemble(file, task, settings, generation, tensors, files, name_in_file=_name_in_file)


def _tensors(model: ModelFile) -> dict[str, Tensor]:
    """The weights under the names of the Hugging Face layout."""
    weights: dict[str, Tensor] = {}
    unknown = []
    for name in model.tensors:
        if name in FLAGS or (name.endswith(SCALE) and name.removesuffix(SCALE) in model.tensors):
            continue
        found = _their_names(name)
        if not found:
            unknown.append(name)
            continue
        tensor = model.read(name)
        if not tensor.ndim or tensor.shape[0] % len(found):
            raise model.error(f"{name} of shape {tuple(tensor.shape)} is not {len(found)} of one height")
        weights |= zip(found, tensor.chunk(len(found)), strict=True)
    refuse_unknown(unknown, model.path)
    if model.aliases.get("decoder/projection/weight", "decoder/embeddings/weight") != "decoder/embeddings/weight":
        raise model.error("its head is not the table of its tokens, which is not supported")
    return weights


def _their_names(name: str) -> tuple[str, ...]:
    """The tensors of the Hugging Face layout that the file's tensor holds, () where it is unknown."""
    match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", name)
    if match is None:
        return {"decoder/projection/weight": ("proj_out.weight",)}.get(name, ())
    half, layer, module, leaf = match.groups()
    if name == "decoder/projection/weight":
        return ("proj_out.weight",)
    if (module, leaf) == ("position_encodings", "encodings"):
        return (f"model.{half}.embed_positions.weight",)
    found = OTHERS.get(module) if layer is None else LAYER.get(module)
    if found is None or leaf not in LEAVES:
        return ()
    inside = f"model.{half}." if layer is None else f"model.{half}.layers.{layer}."
    return tuple(f"{inside}{one}.{LEAVES[leaf]}" for one in _listed(found))


def _name_in_file(name: str) -> str:
    """The file's tensor that holds the one of that name in the Hugging Face layout."""
    match = re.fullmatch(r"model\.(encoder|decoder)\.(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if match is None:
        return "decoder/projection/weight"
    half, layer, module, leaf = match.groups()
    if module == "embed_positions":
        return f"{half}/position_encodings/encodings"
    found = next(theirs for theirs, ours in (OTHERS if layer is None else LAYER).items() if module in _listed(ours))
    leaf = {"weight": "gamma", "bias": "beta"}[leaf] if found.endswith("layer_norm") else leaf
    return f"{half}/{'' if layer is None else f'layer_{layer}/'}{found}/{leaf}"


def _listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _settings(model: ModelFile, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A Hugging Face config.json; the file has no sizes but those of its tensors."""

    def size(name: str, axis: int = 0) -> int:
        if name not in tensors or tensors[name].ndim <= axis:
            raise model.error(f"it has no {name.removeprefix('model.')} with an axis {axis}")
        return tensors[name].shape[axis]

    settings: dict[str, Any] = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": size("model.encoder.conv1.weight"),
        "num_mel_bins": size("model.encoder.conv1.weight", 1),
        "vocab_size": size("model.decoder.embed_tokens.weight"),
        "max_source_positions": size("model.encoder.embed_positions.weight"),
        "max_target_positions": size("model.decoder.embed_positions.weight"),
    }
    for half in ("encoder", "decoder"):
        layers = [int(found[1]) for name in tensors if (found := re.match(rf"model\.{half}\.layers\.(\d+)\.", name))]
        settings[f"{half}_layers"] = len(set(layers))
        settings[f"{half}_ffn_dim"] = size(f"model.{half}.layers.0.fc1.weight")
        settings[f"{half}_attention_heads"] = model.scalar(f"{half}/num_heads")
    return settings


def _generation(folder: Path, model: ModelFile) -> dict[str, Any]:
    """A Hugging Face generation_config.json, of CTranslate2's config.json and the tokenizer beside the file."""
    special = special_tokens(folder)
    wanted = {"decoder_start_token_id": "<|startoftranscript|>", "eos_token_id": "<|endoftext|>"}
    if lacking := [text for text in wanted.values() if text not in special]:
        raise model.error(f"{folder / 'tokenizer.json'} is needed beside it, with the token {lacking[0]}")
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return {
        **{key: special[text] for key, text in wanted.items()},
        "suppress_tokens": config.get("suppress_ids"),
        "begin_suppress_tokens": config.get("suppress_ids_begin"),
    }
