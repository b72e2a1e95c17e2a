"""The families: a file in `families/` is a family, and its name is the file's.

Each file gives: `Config` (frozen dataclass), `Model(config)`, `signature(config)`,
`task(config)` (what the runtime does with it, JSON data with a "name", or None) and `TINY`, a small Config.

A family of one graph gives its Signature; one of several a dict of them by the graphs' names, and its
`Model.graph(name)` is the module of each.
"""

import importlib
import pkgutil
from types import ModuleType

from torch import nn

from isoformer.models import families
from isoformer.models.signature import Signature

# The only graph of a family that gives one Signature.
MODEL = "model"


def names() -> list[str]:
    """The names of all families, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def load(name: str) -> ModuleType:
    """The family's module; ValueError lists the names that there are."""
    if name not in names():
        raise ValueError(f"{name!r} is not a family; there are: {', '.join(names())}")
    return importlib.import_module(f"{families.__name__}.{name}")


def graphs(model: nn.Module, signature: Signature | dict[str, Signature]) -> dict[str, tuple[nn.Module, Signature]]:
    """Graph name → its module and Signature, of a family's model and what its `signature` gave."""
    if isinstance(signature, Signature):
        return {MODEL: (model, signature)}
    return {name: (model.graph(name), one) for name, one in signature.items()}  # pyright: ignore[reportCallIssue]
