"""A server under four times what it can do: latency of what it accepts, what it refuses, whether any answer is wrong.

    python -m benchmarks.load PACKAGE [--seconds 60] [--factor 4]

PACKAGE embeds texts. First, clients that each wait for their answer measure what the server can do; then requests
come at `factor` times that rate, whether it answers or not. Every accepted answer is compared with the one that the
same request gets alone. Prints one JSON object. Loopback alone; server and clients share this machine's cores.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.batch import resident_mb
from benchmarks.turns import ROOT
from isoformer.runtime import Session

REQUESTS = 64  # different ones
CLOSED = 16  # clients that measure what the server can do
MOST_OPEN = 400  # connections; an arrival that finds none is counted, not sent
PATIENCE = 90.0
OUTPUT = "sentence_embedding"
BOUND = 1e-4  # of a unit vector's numbers; the error of another batch's rounding is below 1e-6

Answer = tuple[int, dict[str, str], bytes]


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer:
        """Status, headers and body; on another connection, if the server has closed this one because it was idle."""
        if self.streams is not None:
            try:
                return await self._ask(request)
            except (ConnectionError, EOFError):
                pass
        return await self._ask(request)

    async def _ask(self, request: bytes) -> Answer:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        try:
            writer.write(request)
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=4.0)
    arguments = parser.parse_args()
    requests, expected = make_requests(arguments.package)
    command = [sys.executable, "-m", "isoformer.runtime.cli", "serve", str(arguments.package), "--port", "0"]
    command += ["--name", "model", "--precision", "fp32"]  # whose answers can be held to a close bound
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            line = process.stderr.readline() if process.stderr else ""
            load = Load(int(line.rsplit(":", 1)[1]), process.pid, requests, expected)
            row = asyncio.run(load.measure(arguments.seconds, arguments.factor))
        finally:
            process.terminate()
            stopped = process.wait(120)
    print(json.dumps({"package": arguments.package.name, **row, "exit_status": stopped}))
    if row["wrong"] or row["other"] or stopped:
        sys.exit(1)


def make_requests(package: Path) -> tuple[list[bytes], list[np.ndarray]]:
    """Requests of one to four rows of 5 to 40 tokens, and the vectors that each gets alone."""
    rng, session = np.random.default_rng(0), Session.fastest(package, precision="float32")
    spec = next(spec for spec in session.signature.inputs if spec.name == "input_ids")
    limit = session.signature.axes["sequence_length"][1] or 40
    requests, expected = [], []
    for _ in range(REQUESTS):
        shape = (int(rng.integers(1, 5)), int(rng.integers(5, min(40, limit) + 1)))
        ids, mask = rng.integers(1, spec.high or 100, shape), np.ones(shape, np.int64)
        expected.append(session.run({"input_ids": ids, "attention_mask": mask}, [OUTPUT])[OUTPUT])
        entries = [
            {"name": n, "datatype": "INT64", "shape": list(shape), "parameters": {"binary_data_size": a.nbytes}}
            for n, a in (("input_ids", ids), ("attention_mask", mask))
        ]
        outputs = [{"name": OUTPUT, "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": entries, "outputs": outputs}).encode()
        body = head + ids.tobytes() + mask.tobytes()
        lines = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        requests.append(f"{lines}Inference-Header-Content-Length: {len(head)}\r\n\r\n".encode() + body)
    return requests, expected


class Load:
    """What came of the requests to one server."""

    def __init__(self, port: int, pid: int, requests: list[bytes], expected: list[np.ndarray]) -> None:
        self.port, self.pid, self.requests, self.expected = port, pid, requests, expected
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.waits: list[int] = []
        self.idle = [Client(port) for _ in range(MOST_OPEN)]

    async def measure(self, seconds: float, factor: float) -> dict[str, Any]:
        await asyncio.gather(*(self._closed(time.perf_counter() + 2) for _ in range(CLOSED)))  # warm
        self.counts.clear()
        start = time.perf_counter()
        await asyncio.gather(*(self._closed(start + min(10.0, seconds)) for _ in range(CLOSED)))
        rate = self.counts["accepted"] / (time.perf_counter() - start)
        if not rate:
            sys.exit(f"no request was answered rightly: {dict(self.counts)}")
        self.counts.clear()
        self.latencies.clear()
        memory = [resident_mb(self.pid)]
        await self._open(factor * rate, seconds, memory)
        sent = sum(self.counts[name] for name in ("accepted", "refused", "timed_out", "wrong", "other"))
        quantiles = np.quantile(self.latencies or [np.nan], [0.5, 0.9, 0.99]) * 1e3
        return {
            "seconds": seconds,
            "capacity_per_s": round(rate, 1),
            "offered_per_s": round((sent + self.counts["unsent"]) / seconds, 1),
            "accepted_per_s": round(self.counts["accepted"] / seconds, 1),
            **{name: self.counts[name] for name in ("accepted", "refused", "timed_out", "wrong", "other", "unsent")},
            "share_refused": round(self.counts["refused"] / max(1, sent), 3),
            **{f"p{p}_ms": round(float(q), 1) for p, q in zip((50, 90, 99), quantiles, strict=True)},
            "retry_after": [min(self.waits, default=0), max(self.waits, default=0)],
            "memory_mb": [memory[len(memory) * part // 6] for part in range(6)] + memory[-1:],
        }

    async def _closed(self, end: float) -> None:
        client = self.idle.pop()
        while time.perf_counter() < end:
            await self._ask(client)
        self.idle.append(client)

    async def _open(self, rate: float, seconds: float, memory: list[float]) -> None:
        tasks: set[asyncio.Task] = set()
        start = seen = time.perf_counter()
        arrival = 0
        while (now := time.perf_counter()) < start + seconds:
            if now - seen > 1:
                seen = now
                memory.append(resident_mb(self.pid))
            while start + arrival / rate <= now:
                arrival += 1
                if self.idle:
                    task = asyncio.create_task(self._once(self.idle.pop()))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                else:
                    self.counts["unsent"] += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        memory.append(resident_mb(self.pid))

    async def _once(self, client: Client) -> None:
        await self._ask(client)
        self.idle.append(client)

    async def _ask(self, client: Client) -> None:
        number = random.randrange(len(self.requests))  # noqa: S311
        start = time.perf_counter()
        try:
            status, headers, body = await client.ask(self.requests[number])
        except (OSError, EOFError, TimeoutError):
            self.counts["other"] += 1
            return
        if status == 200:
            self.latencies.append(time.perf_counter() - start)
            vectors = np.frombuffer(body[int(headers["inference-header-content-length"]) :], "<f4")
            wanted = self.expected[number].ravel()
            right = vectors.shape == wanted.shape and bool(np.abs(vectors - wanted).max() < BOUND)
            self.counts["accepted" if right else "wrong"] += 1
        elif status == 504:
            self.counts["timed_out"] += 1
        elif status == 429:
            self.waits.append(int(headers["retry-after"]))
            self.counts["refused"] += 1
        else:
            self.counts["other"] += 1


if __name__ == "__main__":
    main()
