"""Weights that somebody else trained, read into a family. One file a source; each file gives

FAMILY, and KINDS                      the family that it fills; the model_type values of a folder that it reads
accepts(path) -> bool                 whether the folder or file is of its kind, from its header alone
read(path, task) -> Checkpoint        raises CheckpointError with one line that says what is wrong
"""

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from isoformer.models import registry


class CheckpointError(ValueError):
    """The checkpoint cannot be read; the message is one line for a person, whatever the file holds."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST]}…")


LONGEST = 2000  # characters of an error's line
# What a strange file brings out of a reader that has checked what it knows of.
FORM = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class TextFile(NamedTuple):
    """A file that the source makes, where the checkpoint holds its content in another form."""

    name: str
    content: str


@dataclass(frozen=True)
class Checkpoint:
    """What a source found: a family's configuration, its weights under the family's names, and files to carry along.

    `unused` names tensors that are known to the source but play no part in the task; `notes` are lines for the user.
    """

    family: str
    config: Any
    state: dict[str, Tensor]
    files: tuple[Path | TextFile, ...] = ()
    unused: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def model(self, **options: Any) -> nn.Module:
        """The family's model in eval mode with these weights; `options` replace fields of the configuration."""
        module = registry.load(self.family).Model(replace(self.config, **options))
        expected = module.state_dict().keys()
        state = {name: tensor.float() for name, tensor in self.state.items() if name in expected}
        # The pooler may be left out; anything else that is too much is a model of another shape.
        lacking = sorted(expected - state.keys()) or sorted(
            name for name in self.state.keys() - expected if not name.startswith("head.pooler.")
        )
        if lacking:
            raise CheckpointError(
                f"these options ask for other tensors than the checkpoint has: {', '.join(lacking[:8])}"
            )
        try:
            module.load_state_dict(state)
        except (RuntimeError, MemoryError) as error:
            raise CheckpointError(f"these options do not fit the checkpoint: {' '.join(str(error).split())}") from None
        return module.eval()


def read(path: str | Path, task: str | None = None) -> Checkpoint:
    """Reads the checkpoint folder or file with the source that accepts it.

    Raises CheckpointError when the path is missing or no source accepts it.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    for source in sources().values():
        if source.accepts(path):
            try:
                return source.read(path, task)
            except CheckpointError:
                raise
            except FORM as error:  # a setting or a tensor that is none of the sort that the source expects
                problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise CheckpointError(f"{path} is not of the form of a checkpoint ({problem})") from error
    raise CheckpointError(_why_not(path))


def sources() -> dict[str, ModuleType]:
    """File name → source, sorted."""
    modules = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in sorted(modules.items()) if hasattr(module, "accepts")}


def read_into(family: str) -> list[str]:
    """What fills the family: model_type values of folders, and the names of the sources that read other files."""
    found = (getattr(source, "KINDS", (name,)) for name, source in sources().items() if family == source.FAMILY)
    return [kind for kinds in found for kind in kinds]


def _why_not(path: Path) -> str:
    if not path.is_dir():
        kinds = "it is neither a GGUF file nor a CTranslate2 model"
        return f"{path} is not a kind of file that can be read as a checkpoint: {kinds}"
    if not (path / "config.json").exists():
        return f"{path} has no config.json; a checkpoint folder holds config.json and model.safetensors"
    from isoformer.models.checkpoints.folder import read_json

    kind = read_json(path / "config.json").get("model_type")
    kinds = sorted(kind for source in sources().values() for kind in getattr(source, "KINDS", ()))
    return f"{path}/config.json: model_type {kind!r} is not supported; there are {', '.join(kinds)}"
