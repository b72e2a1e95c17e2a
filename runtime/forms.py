"""JSON that strangers wrote: read with limits, and held to a form before anything relies on it.

A form is a function of a value and of what to call it: it raises FormError unless the value has that form.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from isoformer.runtime.errors import PackageError

Form = Callable[[Any, str], None]
MAX_BYTES = 64 * 2**20  # of a file of JSON; the manifest of a large decoder has 1 MB, the longest tokenizers 35 MB
MAX_LINE = 2000  # characters of what an error says
MAX_DIGITS = 400  # of a number: as many as a float can have in front of its point
MAX_TEXT = 2**20  # characters of one text
SIZE = 2**31  # of an axis, a count or an id: more than any array here can have
# Characters that would steer a terminal; line feeds and tabs do not.
STEERING = frozenset(map(chr, (*range(9), *range(11, 32), *range(127, 160))))


class FormError(ValueError):
    """A value has another form; the message is a clause: what it is, and what belongs there."""


def read_json(file: Path) -> Any:
    """The data in the file. Raises PackageError, one line, for what is no JSON or goes beyond a limit.

    Refused too: NaN and infinities, numbers that no float holds, a key that an object has twice (readers differ in
    which of the two they take), and characters that would steer a terminal.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise PackageError(f"{file} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise PackageError(f"{file} cannot be read as JSON: {one_line(error)}") from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in the file; PackageError as `read_json`, and for anything else than an object."""
    data = read_json(file)
    if not isinstance(data, dict):
        raise PackageError(f"{file} holds {type(data).__name__}, not a JSON object")
    return data


def one_line(error: BaseException) -> str:
    """An error's message as it may stand in a line: of at most MAX_LINE characters."""
    line = "".join(c if c.isprintable() else " " for c in str(error)[: MAX_LINE + 1]).strip() or type(error).__name__
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"


def listing(names: Iterable[Any], most: int = 20) -> str:
    """Names as they may stand in a line: the first ones, each short and printable."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(one_line(ValueError(str(name)[:60])) for name in names[:most]) + more


def shown(value: Any) -> str:
    """A value as it may stand in a line: short, and printable."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"
    return repr(value)[:200]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"an object has the key {shown(twice)} twice")
    for key, value in pairs:
        texts = (key, *(text for text in (value if isinstance(value, list) else (value,)) if isinstance(text, str)))
        if any(not STEERING.isdisjoint(text) for text in texts):
            raise ValueError(f"the key {shown(key)} or its value holds control characters")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def refuse(value: Any, where: str, belongs: str) -> NoReturn:
    """Raises FormError."""
    raise FormError(f"{where} is {shown(value)}, where {belongs} belongs")


def text(value: Any, where: str) -> None:
    """A text of at most MAX_TEXT characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        refuse(value, where, "a text")


def name(value: Any, where: str) -> None:
    """A text of one line, not empty."""
    if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
        refuse(value, where, "a name")


def flag(value: Any, where: str) -> None:
    """true or false."""
    if not isinstance(value, bool):
        refuse(value, where, "true or false")


def number(value: Any, where: str) -> None:
    """A number that a float64 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        refuse(value, where, "a number")


def anything(_value: Any, _where: str) -> None:
    """Whatever stands there is only shown."""


def whole(low: int = 0, high: int = SIZE) -> Form:
    """A whole number from low to high."""

    def form(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(value, where, f"a whole number from {low} to {high}")

    return form


def one_of(*values: str) -> Form:
    def form(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in values:
            refuse(value, where, f"one of {', '.join(values)}")

    return form


def nullable(inner: Form) -> Form:
    """null, or what `inner` says."""
    return lambda value, where: None if value is None else inner(value, where)


def either(one: Form, other: Form) -> Form:
    """What one of the two says; of what is neither the second's words are shown."""

    def form(value: Any, where: str) -> None:
        try:
            one(value, where)
        except FormError:
            other(value, where)

    return form


def listed(inner: Form, most: int = 2**20, least: int = 0) -> Form:
    """A list of `least` to `most` values of a form."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            refuse(value, where, f"a list of {least} to {most} values")
        for place, entry in enumerate(value):
            inner(entry, f"{where}[{place}]")

    return form


def mapped(inner: Form, most: int = 2**20) -> Form:
    """An object whose values have a form, under any names."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            refuse(value, where, f"an object of at most {most} entries")
        for key, entry in value.items():
            name(key, f"a key of {where}")
            inner(entry, f"{where}.{key}")

    return form


def record(required: Mapping[str, Form], optional: Mapping[str, Form] | None = None, *, closed: bool = False) -> Form:
    """An object with the required keys; what is in neither may hold anything, or is refused if closed."""
    known = required.keys() | (optional or {}).keys()

    def form(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(value, where, "an object")
        if closed and (unknown := sorted(value.keys() - known)):
            raise FormError(f"{where} has the unknown key {shown(unknown[0])}")
        for key, inner in required.items():
            if key not in value:
                raise FormError(f"{where} lacks {key}")
            inner(value[key], f"{where}.{key}" if where else key)
        for key, inner in (optional or {}).items():
            if key in value:
                inner(value[key], f"{where}.{key}" if where else key)

    return form
