"""Libraries that only some tasks need: the package's extras bring them."""

import importlib
from types import ModuleType

from isoformer.runtime.errors import IsoformerError

# library → what needs it, and the extra
NEEDED = {
    "soundfile": ("sound needs soundfile", "audio"),
    "soxr": ("sound of another rate needs soxr", "audio"),
    "PIL": ("pictures need Pillow", "image"),
    "av": ("video needs PyAV", "video"),
    "pyarrow": ("Parquet needs pyarrow", "batch"),
    "ray": ("--engine ray needs Ray", "ray"),
    "starlette": ("the server needs Starlette", "serve"),
    "uvicorn": ("the server needs uvicorn", "serve"),
    "prometheus_client": ("the server needs prometheus_client", "serve"),
}


def library(module: str) -> ModuleType:
    """The module of one of NEEDED; IsoformerError, one line that says what to install, where it cannot be imported."""
    why, extra = NEEDED[module.partition(".")[0]]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: the library behind soundfile or PyAV is not there
        raise IsoformerError(f"{why} ({error}): pip install 'isoformer[{extra}]'") from error
