"""What the checkpoint folders of the Hugging Face layout share: config.json, safetensors and tokenizer files."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isoformer.models.checkpoints import CheckpointError

CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "chat_template.jinja",
)
# Their names of activations, and ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


MAX_JSON = 64 * 2**20  # bytes
MAX_LABELS = 2**20


def load_json(path: Path) -> Any:
    """The JSON data in the file; CheckpointError where there is none, or more than MAX_JSON bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON + 1)
        if len(content) > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; CheckpointError when it is not one."""
    data = load_json(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, not a JSON object")
    return data


def model_type(path: Path) -> str | None:
    """The model_type of the folder's config.json, None where there is none to read."""
    try:
        kind = read_json(path / "config.json").get("model_type")
    except CheckpointError:
        return None
    return kind if isinstance(kind, str) else None


def positive(settings: Mapping[str, Any], key: str) -> float:
    """The setting as a float; ValueError unless it is a positive number."""
    value = settings[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}; it must be a positive number")
    return float(value)


def flag(settings: Mapping[str, Any], key: str) -> bool:
    """The setting; ValueError unless it is true or false."""
    if not isinstance(settings[key], bool):
        raise ValueError(f"{key} is {settings[key]!r}; it must be true or false")
    return settings[key]


def activation(name: Any, key: str = "activation") -> str:
    """Our name of the activation; ValueError for one that there is not."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{key} {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        names = ["model.safetensors"]
    elif index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{index} has no weight_map of tensor and file names")
        names = sorted(set(places.values()))
    else:
        pickled = " (pytorch_model.bin is a pickle and is never opened: save it again with safe_serialization=True)"
        raise CheckpointError(
            f"{path} has no model.safetensors{pickled if (path / 'pytorch_model.bin').exists() else ''}"
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not name or Path(name).name != name or name == "..":
            raise CheckpointError(f"{index} names the shard {name!r}, which is not a plain file name")
        try:
            tensors |= load_file(path / name)
        except FileNotFoundError:
            raise CheckpointError(f"{path / name} does not exist, but {index.name} names it") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path / name} is not a whole safetensors file: {error}") from None
    return tensors


def assign(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    their_name: Callable[[str], str],
    where: Path,
    in_file: Callable[[str], str] = str,
    asked_by: str = "config.json",
) -> dict[str, Tensor]:
    """The tensors under our names: `their_name` tells what `tensors` calls each of `expected`.

    in_file: turns that into the file's own name, and asked_by: names what tells the shapes, for messages.

    Raises CheckpointError that names, as the file does, the tensors that are missing or of another shape.
    """
    names = {ours: their_name(ours) for ours in expected}
    missing = sorted({in_file(theirs) for theirs in names.values() if theirs not in tensors})
    if missing:
        raise CheckpointError(f"{where} lacks the {_count(missing)}")
    misfits = [
        f"{in_file(theirs)} of shape {tuple(tensors[theirs].shape)} "
        f"where {asked_by} asks for {tuple(expected[ours].shape)}"
        for ours, theirs in names.items()
        if tensors[theirs].shape != expected[ours].shape
    ]
    if misfits:
        raise CheckpointError(f"{where} has the {_count(list(dict.fromkeys(misfits)))}")  # one may be several of ours
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def refuse_unknown(names: Iterable[str], where: Path) -> None:
    """Raises CheckpointError that names the tensors, if there are any."""
    unknown = sorted(names)
    if unknown:
        raise CheckpointError(f"{where} has the unknown {_count(unknown)}")


def _count(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"tensor{'s' * (len(names) > 1)} {', '.join(names[:most])}{more}"


def carried_files(path: Path) -> tuple[Path, ...]:
    """The folder's configuration and tokenizer files, for the package to carry along.

    Raises CheckpointError for one that is a link to elsewhere, which would be published with the package. The cache
    of the Hugging Face hub keeps the files of snapshots/NAME in blobs beside snapshots.
    """
    here = path.resolve()
    inside = [here, *([here.parents[1] / "blobs"] if here.parent.name == "snapshots" else [])]
    found = tuple(path / name for name in CARRIED if (path / name).exists())
    for file in found:
        if not any(file.resolve().is_relative_to(folder) for folder in inside):
            raise CheckpointError(f"{file} is a link out of the folder; put the file itself there")
    return found
