"""How tests of other people's clients run them: in the environments of `make clients`."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def python() -> Path:
    """The interpreter that has the clients; a test that needs it fails without it."""
    path = ROOT / ".venv-clients/bin/python"
    if not list(path.parent.parent.glob(".installed-*")):
        pytest.fail("the clients are not there: make clients")
    return path


def call(*command: str | Path, stdin: str = "", **environment: str) -> str:
    """What a command prints."""
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
