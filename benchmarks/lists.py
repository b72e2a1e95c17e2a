"""Lists of texts of many lengths: how long they take by how they are cut into batches.

    isoformer tune PACKAGE && python -m benchmarks.lists PACKAGE [--precision fp32] [--turns 5]

Four ways on one session, in turns in an order drawn anew: batches of 32 as the texts come, batches of 32 of texts
sorted by length, the cheapest cut by the provider's rough costs, and by the costs that `isoformer tune` measured here.
Lengths are drawn from a lognormal distribution, half of them under 30 tokens. One JSON object a line: the median time
of a way, and turn by turn how many times faster it was than sorted batches of 32.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np

from isoformer.runtime import Session
from isoformer.runtime.batching import plan
from isoformer.runtime.cost import cost_on
from isoformer.runtime.options import precision_name

ROWS = 32


def cuts(lengths: np.ndarray, session: Session) -> dict[str, list[np.ndarray]]:
    """Each way's groups of texts."""
    order = np.argsort(lengths, kind="stable")
    rough = cost_on(session.provider)
    return {
        "as they come": np.array_split(np.arange(len(lengths)), len(lengths) // ROWS),
        "sorted": np.array_split(order, len(lengths) // ROWS),
        "rough costs": plan(lengths, rough, ROWS),
        "measured costs": plan(lengths, session.cost, ROWS),
    }


def batch(lengths: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """One batch, padded to its longest text."""
    width = int(lengths.max())
    return {
        "input_ids": ids[: len(lengths), :width],
        "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--precision")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    arguments = parser.parse_args()
    precision = None if arguments.precision is None else precision_name(arguments.precision)
    session = Session.fastest(arguments.package, precision=precision)
    high = session.signature.axes["sequence_length"][1] or 512
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(30), 0.9, arguments.texts), 3, high).astype(int)
    vocabulary = next(spec.high for spec in session.signature.inputs if spec.name == "input_ids") or 1000
    ids = rng.integers(0, vocabulary, (ROWS, int(lengths.max())))
    groups = cuts(lengths, session)
    batches = {way: [batch(lengths[group], ids) for group in found] for way, found in groups.items()}
    times: dict[str, list[float]] = {way: [] for way in groups}
    for turn in range(-1, arguments.turns):
        for way in random.sample(list(groups), len(groups)):
            start = time.perf_counter()
            for inputs in batches[way]:
                session.run(inputs, ["sentence_embedding"])
            if turn >= 0:
                times[way].append(time.perf_counter() - start)
    for way, found in times.items():
        ratios = np.array(times["sorted"]) / found
        row = {"way": way, "batches": len(groups[way]), "median_ms": round(float(np.median(found)) * 1e3, 1)}
        quartiles = [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))]
        print(json.dumps(row | {"times_faster": round(float(np.median(ratios)), 3), "quartiles": quartiles}))


if __name__ == "__main__":
    main()
