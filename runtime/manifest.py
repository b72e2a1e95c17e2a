"""The form of a package's manifest: what each part must be before anything relies on it."""

import re
from pathlib import PurePosixPath
from typing import Any

from isoformer.runtime.forms import (
    FormError,
    anything,
    either,
    flag,
    listed,
    mapped,
    name,
    nullable,
    number,
    one_of,
    record,
    refuse,
    shown,
    text,
    whole,
)

MAX_FILES = 10_000
MAX_TENSORS = 10_000  # inputs, outputs: a cache has two a layer
MAX_AXES = 8
MAX_FIXED = 2**28  # values that the fixed sizes and the least sizes of one tensor make
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")  # from the finest on
DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
KINDS = ("value", "mask", "lengths", "segments", "prefix", "indices", "choices")
ALONG = ("lengths", "prefix", "indices", "choices")
# What Windows has a meaning of its own for is refused everywhere, since a package is one everywhere.
FORBIDDEN = frozenset('\\:*?"<>|')


def file_name(value: str) -> str | None:
    """Why the text is not the plain name of a file in the package, None where it is: no step up, no root, no detour."""
    pure = PurePosixPath(value)
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:|[\\]", value):
        return "leads out of the package; it is refused"
    if not value.isprintable() or not FORBIDDEN.isdisjoint(value) or pure.as_posix() != value or value in ("", "."):
        return "is not a plain file name"
    return None


def _file(value: Any, where: str) -> None:
    name(value, where)
    if why := file_name(value):
        raise FormError(f"{where} {value!r} {why}")


def digests(value: Any, where: str) -> None:
    """Names of files and their SHA-256."""
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_FILES:
        refuse(value, where, f"an object of 1 to {MAX_FILES} names and digests")
    folded = {key.casefold() for key in value}
    if len(folded) != len(value):
        raise FormError(f"{where} has names that differ in capital letters alone")
    for file, digest in value.items():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            refuse(digest, f"{where}.{file[:60]!r}", "a SHA-256")


INTEGER = whole(-(2**63), 2**63)
SPEC = record(
    {"name": name, "dtype": one_of(*DTYPES), "axes": listed(either(name, whole(0)), MAX_AXES)},
    {
        "kind": one_of(*KINDS),
        "low": INTEGER,
        "high": nullable(INTEGER),
        "pad": nullable(INTEGER),
        "default": nullable(number),
        "along": nullable(name),
    },
    closed=True,
)
AXIS = record(
    {"min": whole(0), "max": nullable(whole(0))},
    {"sum_of": listed(name, 8), "times": whole(1, 2**16), "product_of": listed(name, 8), "plus": whole(0)},
)
SIGNATURE = record(
    {
        "inputs": listed(SPEC, MAX_TENSORS, 1),
        "outputs": listed(SPEC, MAX_TENSORS, 1),
        "axes": mapped(AXIS, 1000),
        "padding": listed(one_of("left", "right"), 2),
    },
    {"chunked": flag},
)
CASES = mapped(mapped(record({"shape": listed(whole(0), 64), "bound": number})))
TOLERANCES = mapped(record({"absolute": number}, {"factor": number}))
STEPS = mapped(record({"bound": number}))
MEASURES = mapped(either(number, either(text, mapped(number))))
VARIANT = record(
    {
        "path": _file,
        "provider": name,
        "precision": one_of(*PRECISIONS),
        "cache": one_of("none", "plain", "shared"),
        "decoding": STEPS,
    },
    {
        "golden": CASES,
        "golden_cases": mapped(text),
        "tolerances": TOLERANCES,
        "zero_at_padding": listed(name, MAX_TENSORS),
        "padded": flag,
        "gate": MEASURES,
        "measured_on": name,
        "cache_dtype": one_of("int8", "float16", "float32"),
        "reproducible": flag,
    },
)
PARITY = record(
    {
        "cases": whole(),
        "values": whole(0, 2**63),
        "worst_share_of_bound": nullable(number),
        "by_mask_and_length": mapped(mapped(nullable(number))),
    }
)
GRAPH = record(
    {
        "precision": one_of(*PRECISIONS),
        "opset": whole(1, 1000),
        "signature": SIGNATURE,
        "operators": mapped(whole()),
        "parameters": whole(0, 2**63),
        "tolerances": mapped(record({"absolute": number, "factor": number})),
        "parity": mapped(PARITY, 1000),
        "golden": CASES,
        "grid": CASES,
    },
    {
        "preferred": name,
        "variants": mapped(VARIANT, 1000),
        "decoding": STEPS,
        "notes": listed(text, 1000),
        "golden_cases": mapped(text),
    },
)
WHOLE = record(
    {"name": name, "task": nullable(record({}, {"name": name, "kind": name})), "versions": mapped(text, 1000)},
    {"family": name, "config": anything, "source": anything, "mask_contract": whole()},
)


def check_graph(records: dict[str, Any], files: dict[str, str]) -> None:
    """Raises FormError unless a graph's records have their form and agree with each other."""
    GRAPH(records, "")
    _check_signature(records["signature"])
    outputs = [spec["name"] for spec in records["signature"]["outputs"]]
    _require("tolerances", records["tolerances"], outputs)
    for check in ("golden", "grid"):
        for case, recorded in records[check].items():
            _require(f"{check}.{case}", recorded, outputs)
    _check_vectors("golden", records["golden"], len(records["signature"]["inputs"]), files)
    for variant, entry in records.get("variants", {}).items():
        if entry["path"] not in files:
            raise FormError(f"variants.{variant}.path {entry['path']!r} is not among the files")
        _check_vectors(
            f"variants.{variant}.golden", entry.get("golden", {}), len(records["signature"]["inputs"]), files
        )
        for case in entry.get("golden", {}).values():
            for output in case:
                if output not in outputs:
                    raise FormError(f"variants.{variant}.golden has {shown(output)}, which is no output")
        if not entry["decoding"] or "tolerances" in entry:  # something holds every variant
            _require(f"variants.{variant}.tolerances", entry.get("tolerances", {}), outputs)


def _check_vectors(where: str, golden: dict[str, Any], inputs: int, files: dict[str, str]) -> None:
    """Raises FormError unless every data set has its inputs among the files, whose names have been checked."""
    for case in golden:
        for file in (f"{case}/input_{index}.pb" for index in range(inputs)):
            if file not in files:
                raise FormError(f"{where} names {file!r}, which is not among the files")


def _require(where: str, there: dict[str, Any], wanted: list[str]) -> None:
    for output in wanted:
        if output not in there:
            raise FormError(f"{where} lacks {output}")


def _check_signature(signature: dict[str, Any]) -> None:
    """Names once, axes that are there, sizes that fit."""
    axes, specs = signature["axes"], (*signature["inputs"], *signature["outputs"])
    for kind in ("inputs", "outputs"):
        names = [spec["name"] for spec in signature[kind]]
        if len(set(names)) != len(names):
            raise FormError(f"signature.{kind} has a name twice")
    for axis, entry in axes.items():
        if entry["max"] is not None and entry["max"] < entry["min"]:
            raise FormError(f"signature.axes.{axis} goes from {entry['min']} to {entry['max']}")
        for part in (*entry.get("sum_of", ()), *entry.get("product_of", ())):
            plain = axes.get(part)
            if plain is None or plain.get("sum_of") or plain.get("product_of"):
                raise FormError(f"signature.axes.{axis} is made of {part!r}, which is no plain axis")
        if entry.get("product_of") and "plus" not in entry:
            raise FormError(f"signature.axes.{axis} lacks plus")
    outputs = {spec["name"] for spec in signature["outputs"]}
    for spec in specs:
        _check_spec(spec, axes, outputs)


def _check_spec(spec: dict[str, Any], axes: dict[str, Any], outputs: set[str]) -> None:
    where, values = f"signature: {spec['name']}", 1
    for axis in spec["axes"]:
        if isinstance(axis, str) and axis not in axes:
            raise FormError(f"{where} has the axis {axis!r}, which is not among the axes")
        values *= max(1, axis if isinstance(axis, int) else axes[axis]["min"])
    if values > MAX_FIXED:
        raise FormError(f"{where} has {values:,} values at least; {MAX_FIXED:,} are the most")
    kind, along = spec.get("kind", "value"), spec.get("along")
    if (kind in ALONG) != (along is not None):
        raise FormError(f"{where} is of kind {kind} along {along!r}")
    if along is not None and along not in (outputs if kind == "choices" else axes):
        raise FormError(f"{where} is along {along!r}, which is not there")
    least = {"mask": 1, "segments": 2, "choices": 1}.get(kind, 0)
    if len(spec["axes"]) < least or (kind in ("lengths", "prefix") and len(spec["axes"]) != 1):
        raise FormError(f"{where} is of kind {kind} and has {len(spec['axes'])} axes")
    low, high = spec.get("low", 0), spec.get("high")
    if high is not None and high <= low:
        raise FormError(f"{where} holds numbers from {low} to {high}")
