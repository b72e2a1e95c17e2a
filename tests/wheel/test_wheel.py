"""The built wheel in an environment of its own: what an app gets that installs isoformer[cpu] and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import sys
for name in ("typer", "rich", "torch", "onnx"):
    sys.modules[name] = None  # importing any of them is now an ImportError
from isoformer.runtime import Session
from isoformer.runtime.tasks import embed
vectors = embed.embeddings(Session(sys.argv[1]), ["That is a happy person", "That is a happy dog"])
print(float(vectors[0] @ vectors[1]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    quiet = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(quiet, check=True, capture_output=True)
    wheel = next(folder.glob("isoformer-*.whl"))
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, f"{wheel}[cpu]"], check=True, capture_output=True)
    return folder / "venv/bin"


def call(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Away from the repository, whose folders must not be importable by accident.
    return subprocess.run(
        [str(environment / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=environment,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200"},
    )


@pytest.mark.parametrize("module", ["torch", "onnx", "onnxscript", "transformers"])
def test_it_brings_no_training_framework(environment, module):
    done = call(environment, "python", "-c", f"import {module}")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_run_gives_the_published_similarities(environment, minilm_package):
    texts = ("That is a happy person", "That is a happy dog", "Today is a sunny day")
    done = call(environment, "isoformer", "run", str(minilm_package), *texts)
    assert done.returncode == 0, done.stderr
    assert "0.6946" in done.stdout
    assert "0.2569" in done.stdout


def test_run_json(environment, minilm_package):
    done = call(environment, "isoformer", "run", str(minilm_package), "--json", "one", "another")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["input"] for row in rows] == ["one", "another"]
    assert [len(row["embedding"]) for row in rows] == [384, 384]


def test_verify(environment, minilm_package):
    done = call(environment, "isoformer", "verify", str(minilm_package), "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert verdict["passed"]
    assert verdict["cases"] > 100


def test_inspect(environment, minilm_package):
    done = call(environment, "isoformer", "inspect", str(minilm_package))
    assert done.returncode == 0, done.stderr
    assert "sentence_embedding" in done.stdout


def test_the_library_needs_only_numpy_onnxruntime_and_tokenizers(environment, minilm_package):
    done = call(environment, "python", "-c", BARE, str(minilm_package))
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout) - 0.6946) < 0.0005


def test_export_says_what_to_install(environment, tmp_path):
    done = call(environment, "isoformer", "export", "-m", "encoder", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "isoformer[export]" in done.stderr
    assert done.stderr.count("\n") == 1
