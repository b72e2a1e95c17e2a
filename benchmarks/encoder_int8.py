"""What 8 bits cost MiniLM's embeddings, plain and smoothed: 1,000 sentences of newsgroups beside float32.

    python -m benchmarks.encoder_int8 [--out FILE.jsonl]

JSON lines: the versions; of each way the mean cosine with float32's vectors and Spearman's correlation of the
similarities of all pairs of sentences.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.stats import spearmanr

from benchmarks.latency import CHECKPOINT, ROOT, environment
from isoformer.export import encoder_variants, quantize
from isoformer.export.graph import to_onnx
from isoformer.export.source import resolve
from isoformer.runtime.package import Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.session import Session
from isoformer.runtime.tasks import embed

NEWSGROUPS = ROOT / ".assets/orangecontrib/text/datasets/20newsgroups-test.tab"
COUNT = 1000
WAYS = {"plain": False, "smoothed": True}


def sentences() -> list[str]:
    """COUNT of them, drawn with a fixed seed, of 20 to 400 letters."""
    if not NEWSGROUPS.is_file():
        sys.exit(f"{NEWSGROUPS} is not there: make assets")
    text = NEWSGROUPS.read_text(encoding="utf-8", errors="replace")
    found = [one.strip() for one in re.split(r"(?<=[.!?])\s+|\n|\t", text)]
    found = [one for one in found if 20 < len(one) < 400 and " " in one]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:COUNT]]


def vectors() -> Iterator[tuple[str, np.ndarray]]:
    """Of float32 and each way the sentences' vectors."""
    source, texts = resolve(str(CHECKPOINT)), sentences()
    edge = source.signature
    if isinstance(edge, dict):
        sys.exit(f"{CHECKPOINT} has several graphs")
    plain = RuntimeSignature.read(edge.to_dict())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in source.files:
            if isinstance(file, Path):
                (folder / file.name).write_bytes(file.read_bytes())
        looked_at = encoder_variants.gate_sentences(folder, plain, None, "int8")
        smoothed = encoder_variants.smoothed(source.model.eval(), edge, plain, looked_at)
        graphs = {False: to_onnx(source.model, edge, 23), True: to_onnx(smoothed, edge, 23)}
        for way, is_smoothed in {"float32": False, **WAYS}.items():
            found = encoder_variants.padding_free_form(graphs[is_smoothed])
            if found is None:
                sys.exit("MiniLM has no padding-free form")
            if way != "float32":
                quantize.int8(found[0])
            ir.save(found[0], folder / "model.onnx")
            yield way, embed.embeddings(Session(Package(folder, {"task": source.task}, plain)), texts, truncate=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON lines here, not to standard output")
    arguments = parser.parse_args()
    lines, exact, pairs = [environment()], np.empty(0), np.triu_indices(COUNT, 1)
    for way, found in vectors():
        if way == "float32":
            exact = found
            continue
        rank: Any = spearmanr((exact @ exact.T)[pairs], (found @ found.T)[pairs])
        row = {
            "way": way,
            "cosine": round(float((exact * found).sum(1).mean()), 5),
            "spearman": round(float(rank.statistic), 5),
        }
        print(json.dumps(row), file=sys.stderr)
        lines.append(row)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
