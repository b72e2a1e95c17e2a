"""What goes into a model and what comes out: names, dtypes, symbolic axes. Standard library only.

A family states its Signature once. Sample inputs, dynamic axes, input and output names of the
exported graph, the manifest of the package and the cases that verify it are all made from it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at the edge of a graph.

    `axes` holds a name for each axis that varies and an int for each that does not. Call the batch
    axis "batch_size": verification then runs rows of a batch alone and gives each its own mask.
    `kind` says what the values mean: "mask" is a 0/1 mask (see `masks.py`; its last axis counts keys);
    "lengths" (batch_size,) counts the first keys that take part, of the axis named `along`; "prefix"
    (batch_size,) counts first keys of it that are seen by every query, and leaves none out; "segments"
    (batch_size, length) numbers the sequences packed into a row from 1, 0 is padding; "indices" are
    places on the axis `along`; else "value". Of an output, "choices" (…, k) are k different places on the last axis of
    the output named `along`, the best first: verification compares the values found there, since which of two equal
    ones comes first is rounding's to say.
    Integers lie in `low <= x < high` when `high` is given; those of uint8 are all of theirs otherwise. Floats may be
    any; verification draws them from `low` to `high` when that is given, else from a normal distribution. `pad` is the
    value that callers put where the mask is 0, for models that read something from it. An input with a `default`
    may be left out at run time and is then filled with that number.
    """

    name: str
    dtype: str
    axes: tuple[str | int, ...]
    kind: Literal["value", "mask", "lengths", "segments", "prefix", "indices", "choices"] = "value"
    low: int = 0
    high: int | None = None
    pad: int | None = None
    default: int | float | None = None
    along: str | None = None

    def __post_init__(self) -> None:
        if (self.kind in ("lengths", "prefix", "indices", "choices")) != (self.along is not None):
            raise ValueError(
                f"{self.name}: kind {self.kind!r} and along {self.along!r}; only lengths, indices and choices are along"
                " something"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Axis:
    """The sizes that a named axis may take, both ends included; `max=None` is unbounded.

    `sum_of` names the axes whose sizes add up to this one's, `times` as much, which then has no bounds of its own:
    total_sequence_length is the sum of past_sequence_length and sequence_length, samples are 160 times num_frames.
    `product_of` names the axes whose sizes are multiplied, and `plus` is added to that: the patches of an image are
    rows times columns, and a class token more. Outputs alone may have such an axis.
    """

    min: int = 1
    max: int | None = None
    sum_of: tuple[str, ...] = ()
    times: int = 1
    product_of: tuple[str, ...] = ()
    plus: int = 0

    def __post_init__(self) -> None:
        if type(self.times) is not int or self.times < 1 or (self.times > 1 and len(self.sum_of) != 1):
            raise ValueError(f"times is {self.times!r}; it is a whole number from 1, and goes with one axis in sum_of")
        if (self.product_of and self.sum_of) or type(self.plus) is not int or (self.plus and not self.product_of):
            raise ValueError(
                f"product_of {self.product_of} goes without sum_of, and plus {self.plus!r} with product_of"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The axes that this one's size is made of, () for a plain axis."""
        return self.sum_of or self.product_of

    def total(self, sizes: Mapping[str, Any]) -> Any:
        """The size of an axis with `sum_of` or `product_of`, from the sizes of its parts."""
        if self.product_of:
            return math.prod(sizes[part] for part in self.product_of) + self.plus
        return self.times * sum(sizes[part] for part in self.sum_of)


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in the order of `forward`'s arguments and results.

    `axes` bounds the named axes; one that is not listed is unbounded from 1.
    `padding` lists the sides on which padding never changes an answer; verification holds the
    model to it. A model that counts positions from the left end of the rectangle lists "right" alone.
    `chunked` promises that a sequence given in parts, `present.*` of one going in as `past_key_values.*`
    of the next, has the answers of the sequence given whole; verification holds the model to that too.
    `windows` says of each layer i with a cache, past_key_values.{i}, that its queries see what attention_mask,
    causality and a window of so many keys let them, None for no limit: an operator may build the mask itself.

    Raises ValueError when a name is used twice or an output has an axis that no input has.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, Axis] = field(default_factory=dict)
    padding: tuple[Literal["left", "right"], ...] = ("right", "left")
    chunked: bool = False
    windows: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        names = [spec.name for spec in (*self.inputs, *self.outputs)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the signature names {', '.join(twice)} more than once")
        if not self.inputs or not self.outputs:
            raise ValueError("a signature needs at least one input and one output")
        for spec in self.inputs:
            if spec.dtype.startswith("int") and spec.kind == "value" and spec.high is None:
                raise ValueError(f"{spec.name}: an integer input needs `high`, one more than its largest value")
            if spec.kind == "choices":
                raise ValueError(f"{spec.name}: an input cannot be choices")
            if spec.along is not None and spec.along not in self.axis_names():
                raise ValueError(f"{spec.name}: along {spec.along!r} is not an axis of the inputs")
        known = self.axis_names()
        for name, axis in self.axes.items():
            kind = "product" if axis.product_of else "sum"
            for part in axis.parts:
                if part not in known or self.axes.get(part, Axis()).parts:
                    raise ValueError(f"the axis {name} is a {kind} of {part!r}, which is not a plain axis of the model")
            if axis.product_of and any(name in spec.axes for spec in self.inputs):
                raise ValueError(f"the axis {name} is a product, which is for outputs; an input has it")
        for spec in self.outputs:
            for axis in spec.axes:
                if isinstance(axis, str) and axis not in known:
                    raise ValueError(f"output {spec.name} has the axis {axis}, which no input has ({known})")
            if spec.kind == "choices":
                self._check_choices(spec)

    def _check_choices(self, spec: TensorSpec) -> None:
        of = next((other for other in self.outputs if other.name == spec.along), None)
        if of is None or of.axes[:-1] != spec.axes[:-1] or not of.dtype.startswith("float"):
            raise ValueError(f"{spec.name}: choices along {spec.along!r}, which is no output of floats of like axes")

    def axis_names(self) -> list[str]:
        """The named axes of the inputs in their order; then sums and products, and parts of sums, that no input has."""
        named = dict.fromkeys(a for spec in self.inputs for a in spec.axes if isinstance(a, str))
        sums = {name: axis for name, axis in self.axes.items() if axis.parts}
        parts = (part for axis in sums.values() if axis.times > 1 for part in axis.sum_of)
        return list(named | dict.fromkeys(sums) | dict.fromkeys(parts))

    def to_dict(self) -> dict[str, Any]:
        """The signature as JSON data, as the manifest of a package holds it."""
        return {
            "inputs": [asdict(spec) | {"axes": list(spec.axes)} for spec in self.inputs],
            "outputs": [_output(spec) for spec in self.outputs],
            "axes": {
                name: _axis_data(axis)
                for name, axis in ((name, self.axes.get(name, Axis())) for name in self.axis_names())
            },
            "padding": list(self.padding),
            "chunked": self.chunked,
            "windows": list(self.windows),
        }


def _axis_data(axis: Axis) -> dict[str, Any]:
    """An axis as JSON data; what makes a product stands there only where it is one."""
    data = asdict(axis) | {"sum_of": list(axis.sum_of), "product_of": list(axis.product_of)}
    return data if axis.product_of else {name: data[name] for name in ("min", "max", "sum_of", "times")}


def _output(spec: TensorSpec) -> dict[str, Any]:
    plain = {"name": spec.name, "dtype": spec.dtype, "axes": list(spec.axes)}
    return plain if spec.along is None else plain | {"kind": spec.kind, "along": spec.along}
