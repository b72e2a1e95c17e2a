"""Environments of their own for runtimes that cannot share ours: other releases of onnxruntime, and OpenVINO.

They stand in the user's cache and are made once: $XDG_CACHE_HOME/isoformer/environments, or ~/.cache/….
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from isoformer.runtime.errors import InputError, IsoformerError

RELEASE = re.compile(r"\d+\.\d+(\.\d+)?(\.post\d+|rc\d+)?")
OPENVINO = ("onnxruntime==1.32.0", "onnxruntime-ep-openvino==1.8.1", "numpy>=2")
# Wheels that were built before NumPy 2 do not load beside it.
NUMPY_2 = (1, 19)


def folder() -> Path:
    """Where the environments stand."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoformer" / "environments"


def release(version: str) -> tuple[str, ...]:
    """What pip installs for one release of onnxruntime. Raises InputError for what is no release."""
    if not RELEASE.fullmatch(version):
        raise InputError(f"ort=={version}: a release of onnxruntime is meant, such as ort==1.28.0")
    early = tuple(int(part) for part in version.split(".")[:2]) < NUMPY_2
    return f"onnxruntime=={version}", "numpy<2" if early else "numpy"


def python(packages: Sequence[str], said: Callable[[str], None]) -> Path:
    """The Python of an environment that holds the packages, made now if it is not there.

    said: told what is being done when that takes time. Raises IsoformerError, one line, when pip cannot.
    """
    names = [package.replace("==", "-") for package in packages if not package.startswith("numpy")]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    target = folder() / "-".join([*names, version])
    found = target / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if found.exists():
        return found
    said(f"installing {', '.join(packages)} into {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise IsoformerError(f"{target.parent} cannot be written to: {error.strerror}") from None
    try:
        made = beside / found.relative_to(target)
        _run([sys.executable, "-m", "venv", str(beside)], f"an environment at {target}")
        pip = [str(made), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages]
        _run(pip, ", ".join(packages))
        os.rename(beside, target)  # whole, or not at all; python -m finds its packages wherever it stands
    except OSError:
        if not found.exists():  # another process was first
            raise IsoformerError(f"{target} cannot be written to") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return found


def _run(command: Sequence[str], what: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)  # noqa: S603
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or [f"status {done.returncode}"]
        raise IsoformerError(f"{what} could not be installed: {errors[-1].removeprefix('ERROR: ')}")
