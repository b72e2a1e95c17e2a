"""Chat templates that strangers wrote: jinja2's sandbox, and a budget of steps, of time and of text.

The sandbox keeps a template from files and from Python's insides, but not from loops in loops or a text of many
gigabytes. Steps are counted by Python's tracing, which sees every line that a template runs, and the clock is looked at
there, since a line may compare long texts; what a single step may make is bounded where it is called, and what all of
them make where they return.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 2_000_000  # lines of Python; a template takes some ten a message
MAX_TEXT = 2**24  # characters of a text that a template makes
MAX_ITEMS = 2**14  # of a list that two are put together to
MAX_MADE = 2**28  # characters of all texts, and items of all lists, that are handed on
MAX_SECONDS = 10.0  # a template takes milliseconds
MAX_NUMBER = 10_000  # of an argument, such as a width


class _Code(CodeGenerator):
    """Parts and joined texts go through the environment as all else does; jinja2 writes them as Python's own."""

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        self.write("environment.part(" if isinstance(node.arg, nodes.Slice) else "environment.getitem(")
        self.visit(node.node, frame)
        self.write(", ")
        self.visit(node.arg, frame)
        self.write(")")

    def visit_Slice(self, node: nodes.Slice, frame: Frame) -> None:  # noqa: N802
        for place, bound in enumerate((node.start, node.stop, node.step)):
            self.write(", " if place else "")
            self.write("None") if bound is None else self.visit(bound, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, set up as in transformers, with bounds on what one call or operator makes."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Code

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.globals.pop("lipsum")  # made-up text of any length
        self.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        # A method is refused by what it is bound to, too: 'x'.replace, '{:>9999999}'.format.
        _refuse((getattr(function, "__self__", None), *arguments, *named.values()))
        return super().call(context, function, *arguments, **named)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # jinja2's is "".join
        found, left = [], MAX_TEXT
        for part in parts:
            left -= len(part)
            if left < 0:
                raise jinja2.TemplateRuntimeError(f"it makes a text of more than {MAX_TEXT:,} characters")
            found.append(part)
        return "".join(found)

    @staticmethod
    def part(whole: Any, start: Any, stop: Any, step: Any) -> Any:
        """whole[start:stop:step]"""
        return whole[start:stop:step]

    def joined(self, parts: Iterable[Any]) -> str:
        """The texts of all parts, one after the other."""
        return self.concat(map(str, parts))

    def wrap_str_format(self, value: Any) -> Any:
        found = super().wrap_str_format(value)
        if found is not None:
            _refuse((value.__self__,))
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | bytes | list | tuple) else side for side in (left, right)]
        whole = [size for size in sizes if isinstance(size, int | float)]
        if operator == "*" and len(whole) == 2 and abs(whole[0]) * abs(whole[1]) > MAX_TEXT**2:
            raise jinja2.TemplateRuntimeError("a product is too large")
        if operator == "*" and sizes != [left, right] and whole[0] * whole[1] > MAX_NUMBER * 100:
            raise jinja2.TemplateRuntimeError("a text or a list is repeated too often")
        if operator == "**" and not all(abs(size) <= 64 for size in whole):
            raise jinja2.TemplateRuntimeError("a power is too large")
        if operator == "%":
            _refuse((left,))
        if operator == "+" and sizes != [left, right]:
            if isinstance(left, list | tuple) and sum(whole) > MAX_ITEMS:
                raise jinja2.TemplateRuntimeError(f"it makes a list of more than {MAX_ITEMS:,} items")
            if sum(whole) > MAX_TEXT:
                raise jinja2.TemplateRuntimeError(f"it makes a text of more than {MAX_TEXT:,} characters")
        return super().call_binop(context, operator, left, right)


_LOOK_UPS = frozenset([Environment.getitem.__code__, Environment.getattr.__code__])


def render(compiled: jinja2.Template, **values: Any) -> str:
    """The template's text.

    Raises jinja2.TemplateError where it takes too many steps or too long, or makes too much.
    """
    left, made, last, before = MAX_STEPS, 0, None, sys.gettrace()
    deadline = time.monotonic() + MAX_SECONDS

    def trace(frame: Any, event: str, value: Any) -> Any:
        nonlocal left, made, last
        left -= 1
        if left < 0:
            raise jinja2.TemplateRuntimeError(f"it takes more than {MAX_STEPS:,} steps")
        if time.monotonic() > deadline:
            raise jinja2.TemplateRuntimeError(f"it takes more than {MAX_SECONDS:g} seconds")
        if event == "return" and isinstance(value, str | list | tuple):
            if value is not last and frame.f_code not in _LOOK_UPS:  # it may be new
                made, last = made + len(value), value
            if isinstance(value, str) and len(value) > MAX_TEXT:
                raise jinja2.TemplateRuntimeError(f"it makes a text of more than {MAX_TEXT:,} characters")
            if made > MAX_MADE:
                raise jinja2.TemplateRuntimeError(f"it makes more than {MAX_MADE:,} characters in all")
        return trace

    sys.settrace(trace)
    try:
        return compiled.render(**values)
    finally:
        sys.settrace(before)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are looked at first; it keeps the marks of those that take the context."""

    def bounded(*arguments: Any, **named: Any) -> Any:
        _refuse((*arguments, *named.values()))
        return function(*arguments, **named)

    bounded.__dict__.update(getattr(function, "__dict__", {}))
    return bounded


def _refuse(arguments: tuple[Any, ...]) -> None:
    """Raises TemplateRuntimeError for widths and counts beyond reason, and for texts that multiply."""
    size = 1
    for argument in arguments:
        if isinstance(argument, int | float) and not isinstance(argument, bool) and abs(argument) > MAX_NUMBER * 100:
            raise jinja2.TemplateRuntimeError("a number is too large for an argument")
        if isinstance(argument, str):
            size *= max(1, len(argument))
            if "%" in argument or "{" in argument:
                _refuse_widths(argument)
        elif isinstance(argument, list | tuple) and all(isinstance(part, str) for part in argument):
            size *= max(1, sum(map(len, argument)))
    if size > MAX_TEXT**2 or (len(arguments) > 1 and size > MAX_TEXT * 64):
        raise jinja2.TemplateRuntimeError("its texts are too long to be put together")


def _refuse_widths(text: str) -> None:
    """Raises TemplateRuntimeError for a form such as {:>9999999}."""
    if re.search(r"[%{][^}\s]{0,40}\d{6,}", text):
        raise jinja2.TemplateRuntimeError("a width is too large")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
