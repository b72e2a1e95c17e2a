"""One engine in a process of its own, and in an environment of its own: imports numpy and that engine's library.

    python -m benchmarks.peers.worker NAME KIND FORM INPUTS LOG CHECKPOINT [OPTION …]

Reads a JSON object a line: {"shape": NAME} measures a turn at INPUTS/NAME.npz, {"embed": NAME, "to": FILE} writes the
embeddings of the sentences there. Answers with a JSON object a line.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]
TURN_SECONDS, LEAST_RUNS = 0.3, 3
THREADS = os.cpu_count() or 1
BATCH = 8  # of the sentences


def pool(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Normalised mean of the real tokens' vectors, for engines whose graph ends before it: (B, L, E) → (B, E)."""
    weights = mask[:, None, :].astype(np.float32)
    mean = (weights @ hidden)[:, 0] / weights.sum(-1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def isoformer(package: str, _checkpoint: str, provider: Any, variant: str) -> Run:
    """A graph of the package, as a user runs it; gives the hidden states too."""
    from isoformer.runtime import Session

    session = Session(package, provider, variant=variant or None)
    return lambda inputs: session.run(inputs)["sentence_embedding"]


def isoformer_fastest(package: str, _checkpoint: str, provider: Any, precision: str) -> Run:
    """What a user gets who names a provider and a precision: the graph for padding where there is some."""
    from isoformer.runtime import Session

    session = Session.fastest(package, provider, precision=precision)
    return lambda inputs: session.run(inputs)["sentence_embedding"]


def onnxruntime(model: str, _checkpoint: str) -> Run:
    """An InferenceSession as ONNX Runtime sets it up by itself."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names, wanted = {value.name for value in session.get_inputs()}, [value.name for value in session.get_outputs()]

    def run(inputs: Inputs) -> np.ndarray:
        feeds = {name: array for name, array in inputs.items() if name in names}
        if "token_type_ids" in names:
            feeds["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        found: Any = dict(zip(wanted, session.run(wanted, feeds), strict=True))
        if "sentence_embedding" in found:
            return found["sentence_embedding"]
        return pool(found["last_hidden_state"], inputs["attention_mask"])

    return run


def torch(_form: str, checkpoint: str, dtype: str, how: str) -> Run:
    """transformers' BertModel as a user without ONNX runs it, or under torch.compile, compiled for each shape."""
    import torch as th
    from transformers import BertModel  # pyright: ignore[reportMissingImports]

    th.set_num_threads(THREADS)
    model = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).to(getattr(th, dtype)).eval()

    def embed(input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
        hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        wide = th.promote_types(hidden.dtype, th.float32)
        weights = attention_mask[:, None, :].to(wide)
        mean = (weights @ hidden.to(wide))[:, 0] / weights.sum(-1)
        return th.nn.functional.normalize(mean, dim=-1), hidden

    prepared = th.compile(embed, dynamic=False) if how == "compile" else embed

    def run(inputs: Inputs) -> np.ndarray:
        with th.inference_mode():
            return prepared(**{name: th.from_numpy(array) for name, array in inputs.items()})[0].numpy()

    return run


def openvino(model: str, _checkpoint: str, precision: str) -> Run:
    """OpenVINO's CPU plugin, told to be quick about one request; on AMX it computes in bf16 unless told otherwise."""
    import openvino as ov  # pyright: ignore[reportMissingImports]

    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": str(THREADS),
    }
    compiled = ov.Core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    names = {name for value in compiled.inputs for name in value.get_names()}

    def run(inputs: Inputs) -> np.ndarray:
        feeds = {name: array for name, array in inputs.items() if name in names}
        if "token_type_ids" in names:
            feeds["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        request.infer(feeds, share_inputs=True)
        return pool(request.get_output_tensor(0).data, inputs["attention_mask"])

    return run


def ctranslate2(folder: str, _checkpoint: str, compute: str) -> Run:
    """CTranslate2's Encoder, which takes padding away by itself."""
    import ctranslate2 as ct2  # pyright: ignore[reportMissingImports]

    encoder = ct2.Encoder(folder, device="cpu", compute_type=compute, intra_threads=THREADS)

    def run(inputs: Inputs) -> np.ndarray:
        ids = ct2.StorageView.from_array(inputs["input_ids"].astype(np.int32))
        lengths = ct2.StorageView.from_array(inputs["attention_mask"].sum(1).astype(np.int32))
        return pool(np.array(encoder.forward_batch(ids, lengths).last_hidden_state), inputs["attention_mask"])

    return run


KINDS: dict[str, Callable[..., Run]] = {
    "isoformer": isoformer,
    "isoformer-fastest": isoformer_fastest,
    "onnxruntime": onnxruntime,
    "torch": torch,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
}


def load(folder: Path, name: str) -> Inputs:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def turn(run: Run, inputs: Inputs) -> dict[str, Any]:
    """One turn: a run that is not counted, then runs until the time is up, LEAST_RUNS of them at least.

    Its time is the median of the runs that waited least for a processor, see `calm`.
    """
    answer = np.array(run(inputs))
    times: list[float] = []
    waits: list[float] = []
    start = time.perf_counter()
    while len(times) < LEAST_RUNS or time.perf_counter() - start < TURN_SECONDS:
        before, begin = waited(), time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - begin)
        waits.append(waited() - before)
    kept = calm(times, waits)
    found = {"ms": float(np.median(kept)) * 1e3, "least_ms": min(times) * 1e3, "runs": len(times)}
    found["waited"] = sum(waits) / sum(times)
    return found | {"peak_mb": peak_mb(), "answer": answer.tolist()}


def calm(times: list[float], waits: list[float]) -> list[float]:
    """The times of the half of the runs during which the threads waited least for a processor, rounded up.

    What they waited for was at work for somebody else: on a machine that is shared, it says which runs were disturbed
    without looking at how long they took.
    """
    order = sorted(range(len(times)), key=lambda run: waits[run])
    return [times[run] for run in order[: (len(times) + 1) // 2]]


def waited() -> float:
    """Seconds that this process's threads were ready and had no processor, so far; 0 where Linux does not tell."""
    total = 0
    for thread in os.listdir("/proc/self/task") if sys.platform == "linux" else ():
        try:
            total += int(Path(f"/proc/self/task/{thread}/schedstat").read_bytes().split()[1])
        except OSError:  # the thread has ended, or the kernel does not count
            continue
    return total / 1e9


def embed(run: Run, sentences: Inputs, target: str) -> dict[str, Any]:
    """The sentences in their batches, all padded to one length."""
    rows = [
        np.array(run({name: array[at : at + BATCH] for name, array in sentences.items()}))
        for at in range(0, len(sentences["input_ids"]), BATCH)
    ]
    np.save(target, np.concatenate(rows))
    return {"sentences": len(sentences["input_ids"])}


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB; where the system tells it."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    name, kind, form, folder, log, checkpoint, *options = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")  # what libraries print goes into the log
    with Path(log).open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run = KINDS[kind](form, checkpoint, *options)
    for line in sys.stdin:
        asked = json.loads(line)
        if "embed" in asked:
            reply = embed(run, load(Path(folder), asked["embed"]), asked["to"])
        else:
            reply = {"engine": name, "shape": asked["shape"]} | turn(run, load(Path(folder), asked["shape"]))
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
