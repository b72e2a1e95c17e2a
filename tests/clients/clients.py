"""How tests of other people's clients run them."""

import os
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def call(*command: str | Path, stdin: str = "", **environment: str) -> str:
    """What a command prints; it must succeed."""
    found = subprocess.run(
        list(map(str, command)),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout
