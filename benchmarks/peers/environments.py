"""The peers' environments: made from benchmarks/peers/NAME.txt by the ordinary pip, once, below an ignored folder."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
OURS_OPENVINO = "isoformer-openvino"  # ours with ONNX Runtime's plugin, which the Makefile makes
_OPENVINO = REQUIREMENTS.parents[1] / ".venv-openvino"
VERSIONS = "import importlib.metadata as m; print(*{f'{d.name}=={d.version}' for d in m.distributions()}, sep='\\n')"


def python(folder: Path, name: str | None) -> Path:
    """The Python of an environment, made now if it is not there or was made from other requirements.

    Raises RuntimeError, one line, when pip cannot.
    """
    if name is None:
        return Path(sys.executable)
    if name == OURS_OPENVINO:
        if not made(folder, name):
            raise RuntimeError("its environment is not there: make .venv-openvino/.installed")
        return _OPENVINO / "bin/python"
    requirements, target = REQUIREMENTS / f"{name}.txt", folder / name
    found = target / "bin/python"
    if made(folder, name):
        return found
    print(f"making {target} from {requirements.name}; this takes minutes", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(target)], name)
    _run([str(found), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)], name)
    _stamp(folder, name).touch()
    return found


def made(folder: Path, name: str | None) -> bool:
    """Whether the environment is there whole, from the requirements as they are now."""
    if name == OURS_OPENVINO:
        return (_OPENVINO / ".installed").exists()
    return name is None or _stamp(folder, name).exists()


def _stamp(folder: Path, name: str) -> Path:
    digest = hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()
    return folder / name / f".made-{digest[:12]}"


def versions(executable: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Of the packages that stand in an environment."""
    said = subprocess.run([str(executable), "-c", VERSIONS], capture_output=True, text=True, check=True)  # noqa: S603
    found = dict(line.split("==", 1) for line in said.stdout.split())
    return {name: found[name] for name in names if name in found}


def _run(command: list[str], name: str) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)  # noqa: S603
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise RuntimeError(f"the environment {name} could not be made: {lines[-1]}")
