"""What a package can be asked to do. One file a task, named as the task with `_` for `-`; each gives

run(session, texts, *, truncate, progress) -> list of JSON-ready dicts, one an input, in order
show(results, console) -> None        prints them for people

and may give EXAMPLE, an input as it is typed, or one for each kind of the task; without one it is a text.

session is a Session, or the Graphs of a package of several. texts are what the user gives: texts, names of files, …
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from isoformer.runtime.errors import PackageError
from isoformer.runtime.package import Package


def names() -> list[str]:
    """The tasks that there are, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def example(task: dict[str, Any]) -> str:
    """An input of the task, a package's record, as it is typed behind `isoformer run PACKAGE`."""
    default = '"some text"'
    found = getattr(_module(task["name"]), "EXAMPLE", default) if task["name"] in names() else default
    return found if isinstance(found, str) else found.get(task.get("kind"), default)


def of(package: Package) -> ModuleType:
    """The module of the package's task; PackageError when it has none or one that is not known."""
    name = package.task.get("name")
    if name is None:
        raise PackageError(f"{package.path} has no task; run it through isoformer.runtime.Session")
    if name not in names():
        raise PackageError(f"{package.path} is for the task {name!r}; this isoformer has {', '.join(names())}")
    return _module(name)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
