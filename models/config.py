"""What the configurations of all families check alike."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from isoformer.models.attention import check_heads


def check(config: Any, at_least: Mapping[str, int]) -> None:
    """Raises ValueError unless the fields of the dataclass `config` can be built.

    Those of `at_least` are whole numbers of at least so much, or None where that is the default; those
    that are declared Literal are one of their values; num_heads, num_kv_heads, hidden_size and head_dim
    divide each other.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        least = at_least.get(field.name)
        optional = value is None and field.default is None
        if least is not None and not optional and (type(value) is not int or value < least):
            raise ValueError(f"{field.name} is {value!r}; it must be a whole number, at least {least}")
        allowed = get_args(field.type) if get_origin(field.type) is Literal else ()
        if allowed and value not in allowed:
            raise ValueError(f"{field.name} {value!r} is not one of {allowed}")
    kv_heads = getattr(config, "num_kv_heads", None)
    check_heads(config.hidden_size, config.num_heads, kv_heads, getattr(config, "head_dim", None))
