"""How each runner is started, and what it says, held to the package's own records.

A runner is believed in its errors alone: which cases there are and what they are held to, the manifest says.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.lanes import CANONICAL, Lane, Samples, label_of, replayable
from isoformer.runtime.package import Package
from isoformer.runtime.parity import Comparison
from isoformer.runtime.runners import compiled, environments

HERE = Path(__file__).resolve().parent
REPLAY = HERE / "replay.py"
JS = HERE.parent / "js"
WEBGPU = "webgpu"  # a browser's
NODE_SCRIPTS = {"node": "verify.mjs", "browser": "verify-browser.mjs", WEBGPU: "verify-browser.mjs"}
NAMES = ("ort", "reference", "node", "browser", WEBGPU, "c", "openvino")  # and ort==RELEASE
# opset → releases that `all` tries besides the one installed: the oldest that answers rightly, and one between. Up to
# 1.27 a row without keys is wrong from opset 23 on; below, attention is taken apart (docs/decisions/runners.md).
OLDER = {23: ("1.28.0", "1.30.0"), 0: ("1.18.1", "1.23.2")}


class MissingError(IsoformerError):
    """A runtime that is not here; the message says how to get it."""


def older(opset: int) -> tuple[str, ...]:
    """`ort==…` of the older releases that are tried on a graph of that opset."""
    return tuple(f"ort=={version}" for version in OLDER[max(least for least in OLDER if least <= opset)])


def check(name: str) -> None:
    """Raises InputError for a runtime that nobody knows."""
    if name.startswith("ort=="):
        environments.release(name.removeprefix("ort=="))
    elif name not in NAMES:
        raise InputError(f"runtime {name!r} is not one of {', '.join(NAMES)}, ort==RELEASE, all")


def command(name: str, said: Callable[[str], None]) -> list[str]:
    """What starts the runner. Raises MissingError."""
    try:
        if name in NODE_SCRIPTS:
            return _node(name)
        if name == "c":
            return compiled.command(said)
        if name == "openvino":
            return [str(environments.python(environments.OPENVINO, said)), "-I", str(REPLAY), "--provider", "openvino"]
        packages = environments.release(name.removeprefix("ort=="))
        return [str(environments.python(packages, said)), "-I", str(REPLAY)]
    except InputError:
        raise
    except IsoformerError as error:
        raise MissingError(str(error)) from None


def _node(name: str) -> list[str]:
    node, script = shutil.which("node"), JS / NODE_SCRIPTS[name]
    if node is None:
        raise MissingError(f"--runtime {name} needs Node.js 20 or later, and there is no `node` here: install nodejs")
    if not script.is_file():
        raise MissingError(f"--runtime {name}: {script} is not there; install isoformer again")
    return [node, str(script), *(["--provider", "webgpu"] if name == WEBGPU else [])]


def run(
    name: str,
    package: Package,
    variants: Sequence[str],
    said: Callable[[str], None],
    advance: Callable[[str], None] = lambda _case: None,
) -> Iterator[tuple[Lane, list[Comparison], Samples]]:
    """The lanes that a runner replays of the package. Raises MissingError where it, or what it needs, is not here.

    variants: those alone. said: told what takes time before the runner starts. advance: called a case.
    """
    expected = {
        (graph, variant): cases
        for graph, part in package.graphs.items()
        for variant, cases in replayable(part, variants, name).items()
    }
    if not expected:
        raise InputError(f"{package.path} has no vectors for {', '.join(variants)} that {name} replays")
    named = dict.fromkeys(variant or CANONICAL for _, variant in expected)
    arguments = [str(package.path.absolute()), *(word for one in named for word in ("--variant", one))]
    lines = _lines(name, [*command(name, said), *arguments], advance)
    for (graph, variant), cases in expected.items():
        mine = [line for line in lines if (line.get("graph"), line.get("variant")) == (graph, variant)]
        lane = _lane(name, package.graphs[graph], variant, mine[0] if mine else {})
        samples = {(line["case"], line["output"]): line["sample"] for line in mine if line.get("sample")}
        yield lane, list(_comparisons(lane.label, cases, mine)), samples


def _lines(name: str, words: list[str], advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """The comparisons that the program prints. Raises MissingError, or IsoformerError for one that breaks down."""
    lines: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(  # noqa: S603
            words, stdout=subprocess.PIPE, stderr=complaints, text=True, encoding="utf-8", errors="replace"
        ) as process,
    ):
        try:
            for text in process.stdout or ():
                line = _read(text)
                if line is not None and "case" in line:
                    if not lines or lines[-1]["case"] != line["case"]:
                        advance(str(line["case"]))
                    lines.append(line)
            status = process.wait()
        finally:
            process.kill()
        complaints.seek(0)
        said = [line.strip() for line in complaints.read().splitlines() if line.strip()]
    last = (said or ["it said nothing"])[-1][:500]
    if status == 2:
        raise MissingError(f"--runtime {name}: {last.removeprefix('isoformer: ')}")
    if status not in (0, 1):
        raise IsoformerError(f"--runtime {name} broke down with status {status}: {last}")
    return lines


def _read(text: str) -> dict[str, Any] | None:
    """A JSON object, None for a line that is something else, such as a library's greeting."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _lane(name: str, part: Package, variant: str | None, line: dict[str, Any]) -> Lane:
    runtime = "ort" if name.startswith("ort==") else "browser" if name == WEBGPU else name
    version = str(line.get("version") or name.partition("==")[2])
    provider = str(line.get("provider") or "cpu")
    called = " ".join(filter(None, ["onnxruntime" if runtime == "ort" else runtime, version, provider, variant]))
    precision = part.manifest["precision"] if variant is None else part.variant(variant)["precision"]
    return Lane(
        label_of(part, called),
        runtime,
        version,
        provider,
        str(line.get("precision") or precision),
        part.graph,
        variant,
        str(line.get("elsewhere") or ""),
        name,
    )


def _comparisons(label: str, cases: dict[str, dict[str, float]], lines: list[dict[str, Any]]) -> Iterator[Comparison]:
    """A comparison for everything that the manifest wants compared, whatever the runner left out."""
    found = {(line.get("case"), line.get("output")): line for line in lines}
    for case, outputs in cases.items():
        failed = found.get((case, "run"))
        if failed is not None:
            yield Comparison(
                label, "golden", case, "run", 0, math.inf, 0.0, str(failed.get("note") or "it did not run")
            )
            continue
        for output, bound in outputs.items():
            line = found.get((case, output))
            if line is None:
                yield Comparison(label, "golden", case, output, 0, math.inf, bound, "the runner did not compare it")
                continue
            error, note = line.get("error"), str(line.get("note") or "")
            error = float(error) if isinstance(error, int | float) else math.inf
            yield Comparison(label, "golden", case, output, int(line.get("values") or 0), error, bound, note)


def say(line: str) -> None:
    """What takes time, on standard error."""
    print(f"isoformer: {line}", file=sys.stderr, flush=True)
