"""The families: a file in `families/` is a family, and its name is the file's.

Each file gives: `Config` (frozen dataclass), `Model(config)`, `signature(config)`,
`task(config)` (what the runtime does with it, JSON data with a "name", or None) and `TINY`, a small Config.
"""

import importlib
import pkgutil
from types import ModuleType

from isoformer.models import families


def names() -> list[str]:
    """The names of all families, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def load(name: str) -> ModuleType:
    """The family's module; ValueError lists the names that there are."""
    if name not in names():
        raise ValueError(f"{name!r} is not a family; there are: {', '.join(names())}")
    return importlib.import_module(f"{families.__name__}.{name}")
