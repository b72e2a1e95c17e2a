"""Other people's clients against our server, and Ray's engines: the environment of `make clients`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from isoformer.runtime import Session
from isoformer.runtime.batch import Job, run
from isoformer.runtime.chat import Chat
from isoformer.runtime.generation import Settings
from isoformer.runtime.tasks import embed
from tests.clients.clients import call
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
TEXTS = ["That is a happy person", "That is a happy dog", "Today is a sunny day"]


@contextmanager
def serving(package: Path) -> Iterator[str]:
    """A server's address."""
    command = [sys.executable, "-m", "isoformer.runtime.cli", "serve", str(package), "--port", "0", "--name", "model"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process.stderr.readline().rsplit("/", 1)[1].strip()
        finally:
            process.terminate()
            process.wait(60)


def test_tritonclient(python: Path, minilm_package: Path) -> None:
    with serving(minilm_package) as address:
        answer = call(python, "examples/triton_client.py", address, "model", minilm_package / "tokenizer.json", *TEXTS)
    expected = embed.embeddings(Session(minilm_package), TEXTS)
    np.testing.assert_allclose(np.array(json.loads(answer), np.float32), expected, atol=1e-5)


def test_openai(python: Path, smollm2_package: Path) -> None:
    text = "What is the capital of France?"
    with serving(smollm2_package) as address:
        answer = call(python, "examples/openai_client.py", f"http://{address}/v1", "model", text)
    chat = Chat(Session.fastest(smollm2_package), settings=Settings(24, temperature=0.0))
    assert answer == "".join(chat.say(text))
    assert len(answer.split()) > 3


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_ray_data(python: Path, embedder: Path, tmp_path: Path, target: str) -> None:
    """The same rows as one process gives, to the byte, and the bad ones aside; also what a stopped job left."""
    source = tmp_path / "in.jsonl"
    texts = [f"there was a fox {n}" for n in range(101)]
    lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
    lines[70] = "{"
    source.write_text("\n".join(lines), encoding="utf-8")
    alone, many = tmp_path / f"alone.{target}", tmp_path / f"many.{target}"
    run(Job(embedder, source, alone, part_rows=13, threads=1))
    options = ["--engine", "ray", "--workers", "2", "--threads", "1", "--part-rows", "13"]
    call(python, "-m", "isoformer.runtime.cli", "batch", embedder, source, many, *options)
    assert many.read_bytes() == alone.read_bytes()
    assert len((tmp_path / "many.rejected.jsonl").read_text().splitlines()) == 1


def test_ray_serve(python: Path, embedder: Path, tmp_path: Path) -> None:
    """The deployment of examples/ray_serve.py, on this machine. Ray writes lines of its own to standard output."""
    script = (
        "import sys, pathlib, urllib.request as u, ray; from ray import serve; ray.init(log_to_driver=False);"
        "from examples.ray_serve import app; serve.start(http_options={'port': 8765}); serve.run(app);"
        "r = u.Request('http://127.0.0.1:8765/v2/models/package/infer', sys.stdin.read().encode());"
        "pathlib.Path(sys.argv[1]).write_bytes(u.urlopen(r, timeout=60).read()); serve.shutdown(); ray.shutdown()"
    )
    ids = [[3, 5, 7]]
    tensor = {"datatype": "INT64", "shape": [1, 3]}
    inputs = [tensor | {"name": "input_ids", "data": ids}, tensor | {"name": "attention_mask", "data": [[1, 1, 1]]}]
    found = subprocess.run(
        [str(python), "-c", script, str(tmp_path / "answer")],
        input=json.dumps({"inputs": inputs, "outputs": [{"name": "sentence_embedding"}]}),
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
        cwd=ROOT,
        env=os.environ | {"ISOFORMER_PACKAGE": str(embedder), "ISOFORMER_REPLICAS": "1"},
    )
    assert found.returncode == 0, found.stderr
    answer = json.loads((tmp_path / "answer").read_bytes())["outputs"][0]["data"]
    inputs = {"input_ids": np.array(ids), "attention_mask": np.ones((1, 3), np.int64)}
    expected = Session(embedder).run(inputs)["sentence_embedding"]
    np.testing.assert_allclose(np.array(answer, np.float32), expected.ravel(), atol=1e-6)
