"""What the configurations of all families check alike."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from isoformer.models.attention import check_heads

# More than any model has, and little enough to be made without weights in some seconds.
MOST_LAYERS, MOST, MOST_DISTANCE = 1024, 2**24, 2**16


def check(config: Any, at_least: Mapping[str, int]) -> None:
    """Raises ValueError unless the fields of the dataclass `config` can be built.

    Those of `at_least` are whole numbers of at least so much, or None where that is the default; those
    that are declared Literal are one of their values; num_heads, num_kv_heads, hidden_size and head_dim
    divide each other. No whole number is beyond what a model could have.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        most = MOST_LAYERS if "layers" in field.name else MOST_DISTANCE if "distance" in field.name else MOST
        if type(value) is int and value > most:
            raise ValueError(f"{field.name} is more than {most:,}, which is the most")
        if field.type is float and (not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value)):
            raise ValueError(f"{field.name} is {str(value)[:60]!r}; it must be a number")
        least = at_least.get(field.name)
        optional = value is None and field.default is None
        if least is not None and not optional and (type(value) is not int or value < least):
            raise ValueError(f"{field.name} is {value!r}; it must be a whole number, at least {least}")
        allowed = get_args(field.type) if get_origin(field.type) is Literal else ()
        if allowed and value not in allowed:
            raise ValueError(f"{field.name} {value!r} is not one of {allowed}")
    kv_heads = getattr(config, "num_kv_heads", None)
    check_heads(config.hidden_size, config.num_heads, kv_heads, getattr(config, "head_dim", None))
