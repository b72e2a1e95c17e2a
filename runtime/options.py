"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from isoformer.runtime.errors import InputError
from isoformer.runtime.providers import ProviderName

PackagePath = Annotated[Path, typer.Argument(metavar="PACKAGE", help="a package folder")]
Provider = Annotated[ProviderName, typer.Option(help="execution provider; never falls back to another")]
Threads = Annotated[int | None, typer.Option(help="threads of one operator (default: one a core)")]
Precision = Annotated[
    str | None, typer.Option(help="fp32, bf16 (openvino), int8 or int4, if PACKAGE has it; default: its own choice")
]
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "int4": "int4"}


def precision_name(name: str) -> str:
    """The precision as packages name it. Raises InputError for one that there is not."""
    if name not in PRECISIONS and name not in PRECISIONS.values():
        raise InputError(f"precision {name!r} is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS.get(name, name)
