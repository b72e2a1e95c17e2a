"""What `isoformer export -m` names: a checkpoint, a family, or a callable of the user's."""

import importlib
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from torch import nn

from isoformer.export.errors import ExportError
from isoformer.models import checkpoints, positions, registry
from isoformer.models.checkpoints import TextFile
from isoformer.models.signature import Signature


@dataclass(frozen=True)
class Source:
    """Everything that export() needs; `notes` are lines for the user."""

    model: nn.Module
    signature: Signature | dict[str, Signature]
    task: dict[str, Any] | None
    files: tuple[Path | TextFile, ...]
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()


def resolve(name: str, task: str | None = None, options: Iterable[str] = ()) -> Source:
    """The model that `name` stands for, tried as a path, a family, module:callable, in this order.

    options: "field=value" of the family's configuration. Raises ExportError.
    """
    try:
        if Path(name).exists():
            return _checkpoint(Path(name), task, list(options))
        if name in registry.names():
            return _family(name, task, list(options))
        if ":" in name and "/" not in name:
            return _callable(name, task, list(options))
    except ValueError as error:  # CheckpointError among them
        raise ExportError(str(error)) from error
    raise ExportError(
        f"{name} is no folder or file here, no family ({', '.join(registry.names())}) and not module:callable"
    )


def families() -> list[dict[str, Any]]:
    """Each family as JSON data: its name, what it is, its tasks, inputs by graph and the checkpoints it reads."""
    found = []
    for name in registry.names():
        family = registry.load(name)
        signature = family.signature(family.TINY)
        graphs = {registry.MODEL: signature} if isinstance(signature, Signature) else signature
        found.append(
            {
                "family": name,
                "about": " ".join((family.__doc__ or "").split("\n\n")[0].split()),
                "tasks": _tasks(family),
                "inputs": {graph: [spec.name for spec in one.inputs] for graph, one in graphs.items()},
                "checkpoints": checkpoints.read_into(name),
            }
        )
    return found


def _tasks(family: ModuleType) -> list[str]:
    """The tasks of a family: the choices of its configuration's `task`, or those that its configuration leads to."""
    choices = {field.name: get_args(field.type) for field in fields(family.Config) if get_origin(field.type) is Literal}
    if "task" in choices:
        return list(choices["task"])
    found: list[str] = []
    for change in ({}, *({name: choice} for name, several in choices.items() for choice in several)):
        with suppress(ValueError):  # a choice that needs others beside it
            task = family.task(replace(family.TINY, **change))
            found += [task["name"]] if task else []
    return list(dict.fromkeys(found))


def _checkpoint(path: Path, task: str | None, options: list[str]) -> Source:
    found = checkpoints.read(path, task)
    config = configured(found.config, options)
    family = registry.load(found.family)
    unused = (f"not used by this task: {', '.join(found.unused)}",) if found.unused else ()
    return Source(
        replace(found, config=config).model(),
        family.signature(config),
        family.task(config),
        found.files,
        {"family": found.family, "config": recorded(config), "source": found.source},
        (*unused, *found.notes),
    )


def _family(name: str, task: str | None, options: list[str]) -> Source:
    family = registry.load(name)
    config = configured(family.TINY, [*([f"task={task}"] if task else []), *options])
    provenance = {"family": name, "config": recorded(config), "source": {"name": name, "weights": "random"}}
    try:
        model = family.Model(config).eval()
    except (RuntimeError, TypeError, MemoryError) as error:  # what PyTorch raises for sizes that cannot be
        raise ExportError(f"the model cannot be made: {str(error).splitlines()[0]}") from error
    return Source(model, family.signature(config), family.task(config), (), provenance)


def recorded(config: Any) -> dict[str, Any]:
    """The configuration for the manifest; a part that is a dataclass of its own carries its name as "kind"."""
    record = asdict(config)
    for field in fields(config):
        if is_dataclass(part := getattr(config, field.name)):
            record[field.name]["kind"] = type(part).__name__
    return record


def _callable(name: str, task: str | None, options: list[str]) -> Source:
    """module:callable; the callable takes nothing and returns (module, Signature), or a dict of them by graph."""
    if task or options:
        raise ExportError("--task and --option belong to checkpoints and families; set them in your callable")
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise ExportError(f"{name}: there is no module {error.name} here or in the environment") from None
    except AttributeError:
        raise ExportError(f"{name}: {module_name} has no {attribute}") from None
    result = build()
    if not (isinstance(result, tuple) and len(result) == 2 and _is_signature(result[1])):
        raise ExportError(f"{name} must return (torch.nn.Module, isoformer.models.signature.Signature)")
    model, signature = result
    if not isinstance(model, nn.Module):
        raise ExportError(f"{name} returns a {type(model).__name__} where a torch.nn.Module belongs")
    if isinstance(signature, dict) and not callable(getattr(model, "graph", None)):
        raise ExportError(f"{name} returns several signatures; its module needs graph(name), the module of each")
    return Source(model.eval(), signature, None, (), {"source": {"name": name}})


def _is_signature(given: Any) -> bool:
    """Whether it is a Signature, or several by the names of their graphs."""
    if not isinstance(given, dict):
        return isinstance(given, Signature)
    names = all(isinstance(name, str) and name.isidentifier() for name in given)
    return bool(given) and names and all(isinstance(one, Signature) for one in given.values())


def configured(config: Any, options: list[str]) -> Any:
    """The configuration with "field=value" options set; a value is read as its field's type."""
    known = {field.name: field for field in fields(config)}
    values = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or name not in known:
            raise ExportError(f"option {option!r} is not NAME=VALUE with a name among {', '.join(known)}")
        values[name] = _parse(name, text, known[name].type)
    return replace(config, **values)


def _scaling(name: str, text: str) -> positions.RotaryScaling:
    example = '{"rope_type": "linear", "factor": 2.0}'
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("it is no object")
        return positions.RotaryScaling.from_config(given)
    except ValueError as error:
        raise ExportError(f"option {name} is like {example}, not {text!r}: {error}") from None


def _parse_several(name: str, text: str, kind: Any) -> tuple[Any, ...]:
    """The values of "a,b,c", each of that kind."""
    if kind not in (str, bool, int, float):
        raise ExportError(f"option {name} cannot be set here; set it in Python")
    try:
        return tuple(_parse(name, part, kind) for part in text.split(",") if part)
    except ExportError:
        raise ExportError(f"option {name} is made of {kind.__name__} values with commas, not {text!r}") from None


def _parse(name: str, text: str, kind: Any) -> Any:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices:
        for choice in choices:
            if str(choice) == text:
                return choice
        raise ExportError(f"option {name} is one of {', '.join(map(str, choices))}, not {text!r}")
    kinds = get_args(kind) or (kind,)
    if positions.RotaryScaling in kinds and text.lower() != "none":
        return _scaling(name, text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ExportError(f"option {name} is true or false, not {text!r}")
        return text.lower() == "true"
    if type(None) in kinds and text.lower() == "none":
        return None
    if str in kinds and kind is str:
        return text
    if get_origin(kind) is tuple:
        return _parse_several(name, text, kinds[0])
    if any(is_dataclass(one) for one in kinds):
        raise ExportError(f"option {name} is {'none here, or ' if type(None) in kinds else ''}set in Python")
    number = float if float in kinds else int
    try:
        return number(text)
    except ValueError:
        raise ExportError(f"option {name} is a number, not {text!r}") from None
