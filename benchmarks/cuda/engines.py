"""The engines of `benchmarks.cuda`, one a process: the package's graphs, and the module they were exported from.

    python -m benchmarks.cuda.engines ENGINE PACKAGE --provider cuda [--model MODEL]

reads a shape a line and answers with a JSON object a line. An encoder's inputs lie on the device before the clock
starts, and its outputs stay there; a decoder's new tokens are chosen on the host, by either engine.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime import Session, load
from isoformer.runtime.bench import peak_mb, time_runs
from isoformer.runtime.binding import Decoder
from isoformer.runtime.package import PAST, PRESENT, Package
from isoformer.runtime.providers import onnxruntime_module
from isoformer.runtime.session import check_inputs
from isoformer.runtime.tune.inputs import inputs_of, is_decoder, prompts_of
from isoformer.runtime.tuning import Shape

OURS = ("isoformer-float32", "isoformer-float16")
TORCH = ("torch-float32", "torch-float16")
TURN_SECONDS = 0.4
NEW = 24  # tokens behind a prompt
Arrays = Mapping[str, np.ndarray]
Answer = tuple[dict[str, float], list]  # medians in ms, what was computed
Measure = Callable[[Shape], Answer]


def variant_of(package: Package, provider: str, precision: str) -> tuple[Package, str | None]:
    """The graph of a precision; on the CPU, which is no GPU but has all of the code, that for CUDA is taken."""
    if precision == "float32":
        return package, package.fastest(provider, "float32") if is_decoder(package) else None
    name = f"cuda-{precision}"
    if name not in package.variants:
        sys.exit(f"{package.path} has no {name}: export it again with --provider cuda")
    variants = package.variants | {name: package.variant(name) | {"provider": provider}}
    return replace(package, manifest=package.manifest | {"variants": variants}), name


def opened(path: Path, provider: Any, precision: str) -> Session:
    package, variant = variant_of(load(path), provider, precision)
    return Session(package, provider, variant=variant)


def measure_of(engine: str, path: Path, provider: str, model: str | None) -> Measure:
    """The engine, ready; exits with a line where it cannot be."""
    runtime, _, precision = engine.partition("-")
    if runtime == "isoformer":
        return ours(opened(path, provider, precision))
    package = load(path)
    module, signature, device = _module(str(model), provider, precision)
    if is_decoder(package):
        return _torch_decoder(module, signature, device, package)
    return _torch_encoder(module, device, precision, package)


def ours(session: Session, seconds: float = TURN_SECONDS, new: int = NEW) -> Measure:
    """seconds: how long a shape of an encoder is measured at least. new: tokens behind a decoder's prompt."""
    return _decoder(session, new) if is_decoder(session.package) else _encoder(session, seconds)


def feeds_of(package: Package, shape: Shape) -> dict[str, np.ndarray]:
    """The graph's inputs, those with a default among them."""
    signature = package.signature
    return check_inputs({s.name: s for s in signature.inputs}, signature.axes, inputs_of(signature, shape))


def _encoder(session: Session, seconds: float) -> Measure:
    """Through an IOBinding, in the device's own memory."""
    make, names = onnxruntime_module().OrtValue.ortvalue_from_numpy, [s.name for s in session.signature.outputs]

    def measure(shape: Shape) -> Answer:
        binding = session.inference.io_binding()
        for name, array in feeds_of(session.package, shape).items():
            binding.bind_ortvalue_input(name, make(array, session.provider))
        for name in names:
            binding.bind_output(name, session.provider)

        def run() -> None:
            session.inference.run_with_iobinding(binding)
            binding.synchronize_outputs()

        binding.synchronize_inputs()
        times = time_runs(run, least_runs=3, least_seconds=seconds)
        found = dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))
        return {"run_ms": float(np.median(times)) * 1e3}, found[_answer(names)][:, :8].tolist()

    return measure


def _answer(names: list[str]) -> str:
    """The output that is compared: what the head makes of the hidden states, where there is a head."""
    return next((name for name in names if name != "last_hidden_state"), names[0])


def _decoder(session: Session, new: int) -> Measure:
    decoder = Decoder(session)

    def measure(shape: Shape) -> Answer:
        other, prompts = prompts_of(shape, decoder.vocab_size or 1)
        decoder.start([row[:1] for row in other])  # so that nothing is spared of the prompts
        at = time.perf_counter()
        tokens, times = [decoder.start(prompts)[0].argmax(-1)], [time.perf_counter() - at]
        for _ in range(new - 1):
            at = time.perf_counter()
            tokens.append(decoder.append(tokens[-1][:, None].tolist()).argmax(-1))
            times.append(time.perf_counter() - at)
        return _prefill_and_token(times), np.stack(tokens, 1).tolist()

    return measure


def _prefill_and_token(times: list[float]) -> dict[str, float]:
    return {"prefill_ms": times[0] * 1e3, "token_ms": float(np.median(times[1:])) * 1e3}


def _module(name: str, provider: str, precision: str) -> tuple[Any, Any, Any]:
    """The module that the package was exported from, its signature and the device."""
    import torch

    from isoformer.export.source import resolve

    if provider == "cuda" and not torch.cuda.is_available():
        sys.exit(f"this PyTorch ({torch.__version__}) finds no CUDA GPU; leave --model out to measure isoformer alone")
    torch.set_float32_matmul_precision("highest")  # as use_tf32=0 in ours
    torch.manual_seed(0)
    source = resolve(name)
    return source.model.eval().to(provider, getattr(torch, precision)), source.signature, torch.device(provider)


def _waited(device: Any) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _torch_encoder(module: Any, device: Any, precision: str, package: Package) -> Measure:
    import torch

    wait, dtype = _waited(device), getattr(torch, precision)

    def measure(shape: Shape) -> Answer:
        feeds = {name: torch.from_numpy(array).to(device) for name, array in feeds_of(package, shape).items()}
        feeds = {name: x.to(dtype) if x.is_floating_point() else x for name, x in feeds.items()}
        found: dict[str, Any] = {}

        def run() -> None:
            with torch.inference_mode():
                found.update(module(**feeds))
            wait()

        times = time_runs(run, least_runs=3, least_seconds=TURN_SECONDS)
        answer = found[_answer([spec.name for spec in package.signature.outputs])]
        return {"run_ms": float(np.median(times)) * 1e3}, answer[:, :8].float().cpu().tolist()

    return measure


def _torch_decoder(module: Any, signature: Any, device: Any, package: Package) -> Measure:
    """The cache grows by copying, as PyTorch's own does."""
    import torch

    wait, dtype = _waited(device), next(module.parameters()).dtype
    caches = {spec.name: spec for spec in signature.inputs if spec.name.startswith(PAST)}
    vocabulary = next(spec.high for spec in package.signature.inputs if spec.name == "input_ids")
    positions = any(spec.name == "position_ids" for spec in signature.inputs)

    def measure(shape: Shape) -> Answer:
        _, prompts = prompts_of(shape, vocabulary or 1)
        step, past, done, times, tokens = torch.tensor(prompts, device=device), {}, 0, [], []
        for name, spec in caches.items():
            past[name] = torch.zeros(len(prompts), spec.axes[1], 0, spec.axes[3], device=device, dtype=dtype)
        for _ in range(NEW):
            at, width = time.perf_counter(), step.shape[1]
            feeds = {"input_ids": step, "attention_mask": torch.ones(len(prompts), done + width, dtype=torch.int64)}
            feeds["logits_positions"] = torch.full((len(prompts), 1), width - 1)
            if positions:
                feeds["position_ids"] = torch.arange(done, done + width).expand(len(prompts), -1)
            with torch.inference_mode():
                found = module(**{name: x.to(device) for name, x in feeds.items()}, **past)
                chosen = found["logits"][:, -1].float().argmax(-1).cpu()
            wait()
            times.append(time.perf_counter() - at)
            past = {name: found[name.replace(PAST, PRESENT, 1)] for name in caches}
            step, done = chosen[:, None].to(device), done + width
            tokens.append(chosen.numpy())
        return _prefill_and_token(times), np.stack(tokens, 1).tolist()

    return measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=OURS + TORCH)
    parser.add_argument("package", type=Path)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--model")
    given = parser.parse_args()
    measure = measure_of(given.engine, given.package, given.provider, given.model)
    for line in sys.stdin:
        shape = Shape.parse(line.strip())
        times, answer = measure(shape)
        row = {"engine": given.engine, "shape": str(shape)} | times | {"peak_mb": peak_mb(), "answer": answer}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
