"""What goes wrong on purpose: clients that go away, kills, full disks, folders that cannot be written, races.

    python -m benchmarks.faults --decoder PACKAGE --embedder PACKAGE [--kills 20] [--only NAME]

Prints one JSON object a fault, with "passed". benchmarks.batch kills batch work, benchmarks.load overloads a server.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.turns import ROOT
from isoformer.runtime import PackageError, load

ISOFORMER = [sys.executable, "-m", "isoformer.runtime.cli"]
EXPORT = [*ISOFORMER, "export", "-m", "encoder"]
PR_CAPBSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2  # Linux: prctl(2), capabilities(7)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--decoder", type=Path, required=True)
    parser.add_argument("--embedder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=[fault.__name__ for fault in FAULTS])
    arguments = parser.parse_args()
    failed = False
    for fault in FAULTS:
        if arguments.only in (None, fault.__name__):
            with tempfile.TemporaryDirectory() as name:
                found = fault(Path(name), arguments)
            print(json.dumps({"fault": fault.__name__, **found}), flush=True)
            failed |= not found["passed"]
    sys.exit(int(failed))


def client_goes_away(_folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A stream whose client leaves after the first tokens: how many more are generated for nobody."""
    asked = 1000
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": asked, "temperature": 0, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with _serving(arguments.decoder) as port:
        with socket.create_connection(("127.0.0.1", port), 120) as connection:
            connection.settimeout(120)
            connection.sendall(head + body)
            received = b""
            while received.count(b"data: ") < 3:
                received += connection.recv(4096)
        # The next request is answered when the generator is free again.
        start = time.perf_counter()
        small = json.dumps({"prompt": "One", "max_tokens": 1}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", small, 120).read()
        seconds = time.perf_counter() - start
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", None, 60).read().decode()
    new = int(_metric(page, "isoformer_generated_tokens_total")) - 1
    stopped = int(_metric(page, "isoformer_generations_stopped_total"))
    passed = stopped == 1 and new < asked / 4
    return {"passed": passed, "asked": asked, "generated": new, "stopped": stopped, "next_answer_s": round(seconds, 2)}


def export_killed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL at random moments of an export, half of them about its end: there is a whole package or none.

    The next export to the place removes what kills have left.
    """
    start = time.perf_counter()
    _quietly([*EXPORT, str(folder / "whole")])
    seconds = time.perf_counter() - start
    draw, states, half, ended = random.Random(0), {"none": 0, "whole": 0}, 0, 0  # noqa: S311
    target = folder / "out"
    for number in range(arguments.kills):
        command = [*EXPORT, str(target)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        try:
            process.wait(draw.uniform(0.9 * seconds, 1.1 * seconds) if number % 2 else draw.uniform(0, seconds))
            ended += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if not target.exists():
            states["none"] += 1
            continue
        try:
            load(target)
            states["whole"] += 1
        except PackageError:
            half += 1
        shutil.rmtree(target)
    _quietly([*EXPORT, str(target)])
    left = sorted(entry.name for entry in folder.iterdir())
    # Without both states the draws missed what they are for, as when the measured export was a slow one.
    passed = not half and all(states.values()) and left == ["out", "whole"]
    counts = {"kills": arguments.kills, "ended_before": ended, **states, "half": half}
    return {"passed": passed, **counts, "left": left, "export_s": round(seconds, 1)}


def exports_to_one_place(folder: Path, _arguments: argparse.Namespace) -> dict[str, Any]:
    """Two exports to one place at once: one wins, the other says so in one line, and the package is whole."""
    target = folder / "out"
    processes = [
        subprocess.Popen([*EXPORT, str(target)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    whole = _is_whole(target)
    lines = [line for text in said for line in text.splitlines() if line.startswith("isoformer:")]
    traceback = any("Traceback" in text for text in said)
    left = sorted(entry.name for entry in folder.iterdir())
    passed = whole and codes in ([0, 0], [0, 2]) and not traceback and left == ["out"]
    return {"passed": passed, "exit_status": codes, "whole": whole, "said": lines, "left": left}


def full_disk(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """No file may grow beyond a limit: one line, nothing half done, and batch work goes on afterwards."""
    source, output, package = folder / "in.jsonl", folder / "out.jsonl", folder / "package"
    _write_texts(source, 3000)
    batch = [*ISOFORMER, "batch", str(arguments.embedder), str(source), str(output), "--part-rows", "500"]
    found = {
        "export": _refused([*EXPORT, str(package)], ROOT, limit=20_000),
        "batch": _refused(batch, ROOT, limit=150_000),
    }
    clean = not package.exists() and not output.exists() and not list(folder.glob(".package*"))
    again = subprocess.run(batch, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    rows = len(output.read_bytes().splitlines()) if output.exists() else 0
    passed = clean and all(entry["one_line"] for entry in found.values()) and (again.returncode, rows) == (0, 3000)
    return {"passed": passed, **found, "nothing_half_done": clean, "rows_afterwards": rows}


def read_only_folder(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A folder that may not be written to: one line, and nothing in it."""
    source, closed = folder / "in.jsonl", folder / "closed"
    _write_texts(source, 10)
    closed.mkdir(mode=0o555)
    batch = [*ISOFORMER, "batch", str(arguments.embedder.absolute()), str(source), str(closed / "out.jsonl")]
    found = {
        "export": _refused([*EXPORT, str(closed / "out")], ROOT, modest=True),
        "batch": _refused(batch, ROOT, modest=True),
    }
    left = [entry.name for entry in closed.iterdir()]
    return {"passed": not left and all(entry["one_line"] for entry in found.values()), **found, "left": left}


def batches_to_one_place(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Two batch runs to one OUT at once: one does all rows, the other says so in one line, and nothing else is left."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    _write_texts(source, 3000)
    command = [*ISOFORMER, "batch", str(arguments.embedder.absolute()), str(source), str(output), "--part-rows", "500"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    rows = [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()]
    lines = [line for text in said for line in text.splitlines() if line.startswith("isoformer:")]
    left = sorted(entry.name for entry in folder.iterdir())
    whole = rows == [f"text number {number}" for number in range(3000)]
    passed = (
        whole and codes in ([0, 2], [0, 0]) and left == ["in.jsonl", "out.jsonl"] and "Traceback" not in "".join(said)
    )
    return {"passed": passed, "exit_status": codes, "rows": len(rows), "said": lines, "left": left}


FAULTS: list[Callable[[Path, argparse.Namespace], dict[str, Any]]]
FAULTS = [client_goes_away, export_killed, exports_to_one_place, batches_to_one_place, full_disk, read_only_folder]


@contextmanager
def _serving(package: Path) -> Iterator[int]:
    """The port of a server."""
    command = [*ISOFORMER, "serve", str(package), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield int((process.stderr.readline() if process.stderr else "").rsplit(":", 1)[1])
        finally:
            process.terminate()
            process.wait(120)


def _metric(page: str, name: str) -> float:
    return float(next(line.split()[1] for line in page.splitlines() if line.startswith(f"{name} ")))


def _quietly(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def _is_whole(package: Path) -> bool:
    try:
        load(package)
    except PackageError:
        return False
    return True


def _refused(command: list[str], cwd: Path, *, limit: int | None = None, modest: bool = False) -> dict[str, Any]:
    """How a command fails: exit status 2 and one line.

    limit: bytes of a file, beyond which a write fails. modest: permissions hold for root too.
    """

    libc = ctypes.CDLL(None, use_errno=True)

    def restrict() -> None:
        if limit is not None:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if modest and os.getuid() == 0:
            for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
                if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                    raise OSError(ctypes.get_errno(), "root keeps what lets it write anywhere")

    done = subprocess.run(  # noqa: S603
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=restrict,
    )
    lines = [line for line in done.stderr.splitlines() if line]
    one_line = done.returncode == 2 and lines[-1:] != [] and lines[-1].startswith("isoformer:")
    return {"one_line": one_line and "Traceback" not in done.stderr, "said": lines[-1:]}


def _write_texts(path: Path, rows: int) -> None:
    path.write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
