"""The command `isoformer convert`, and the layouts that `isoformer export` writes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from isoformer.runtime.console import export_half, out
from isoformer.runtime.errors import InputError
from isoformer.runtime.options import PackagePath, precision_name

NAMES = "triton, transformers.js, genai or ort"


def convert(
    package: PackagePath,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="the folder to write")],
    layout: Annotated[str, typer.Option(help=NAMES)],
    precision: Annotated[
        str | None, typer.Option(help="fp32, int8 or int4, if PACKAGE has it; default: its own choice")
    ] = None,
    provider: Annotated[str, typer.Option(help="triton: cpu, or cuda for instances on a GPU")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="replace what was converted to OUT before")] = False,
) -> None:
    """Write PACKAGE to OUT as another program's folder; large files are hard links."""
    layouts = export_half("layouts")
    chosen = None if precision is None else precision_name(precision)
    layouts.convert(package, output, layout, layouts.Choice(chosen, provider, force))
    out.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def package_for(output: Path, layout: str | None, *, force: bool) -> Iterator[Path]:
    """Where a package is to be exported: `output`, or for a layout a place beside it, converted at the end.

    Raises ExportError at once where `output` is taken.
    """
    if layout is None:
        export_half("package").refuse_taken(output, force=force)
        yield output
        return
    layouts = export_half("layouts")
    choice = layouts.Choice(force=force)
    layouts.check(output, layout, choice)
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{output.name}.package-", dir=output.parent)
    except OSError as error:
        raise InputError(f"{output.parent} cannot be written to: {error.strerror}") from None
    with beside as folder:
        yield Path(folder) / output.name
        layouts.convert(Path(folder) / output.name, output, layout, choice)
