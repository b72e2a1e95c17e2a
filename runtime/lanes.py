"""Lanes: a runtime, a provider and a file of a graph, and what was found there. `isoformer verify` merges them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from isoformer.runtime.package import MODEL, Package
from isoformer.runtime.parity import Comparison, Report, finite

Samples = dict[tuple[str, str], list[float | None]]
CANONICAL = "canonical"  # what --variant calls the package's own file of a graph


@dataclass(frozen=True)
class Lane:
    """label: what reports call it. runtime: ort, reference, node, browser, openvino or c; asked: as --runtime has it.

    elsewhere: operators that ran on another provider than was asked for, which leaves them to it by design.
    """

    label: str
    runtime: str
    version: str
    provider: str
    precision: str
    graph: str = MODEL
    variant: str | None = None
    elsewhere: str = ""
    asked: str = "ort"

    def to_dict(self) -> dict[str, Any]:
        """The fields that a line of `verify --json` has beside those of the comparison."""
        return {
            "engine": self.runtime,
            "asked": self.asked,
            "version": self.version,
            "provider": self.provider,
            "precision": self.precision,
            "graph": self.graph,
            "variant": self.variant,
            "elsewhere": self.elsewhere,
        }


@dataclass
class Found:
    """What the lanes of a package gave; missing: runtime → how to get it.

    samples: (label, case, output) → a few values of an output of the golden vectors, for a later `verify --baseline`.
    described: (graph, variant, data set) → the golden vector in words.
    """

    report: Report = field(default_factory=Report)
    lanes: dict[str, Lane] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[str, str, str], list[float | None]] = field(default_factory=dict)
    described: dict[tuple[str, str | None, str], str] = field(default_factory=dict)

    def add(self, lane: Lane, comparisons: Iterable[Comparison], samples: Samples | None = None) -> None:
        """samples: (case, output) → a few values, of the golden vectors."""
        self.lanes.setdefault(lane.label, lane)
        self.report.comparisons += comparisons
        self.samples |= {(lane.label, *place): values for place, values in (samples or {}).items()}

    def rows(self) -> list[dict[str, Any]]:
        """The matrix: a row a lane, then one for each runtime that is missing."""
        rows = []
        for label, lane in self.lanes.items():
            part = Report([c for c in self.report.comparisons if c.runtime == label])
            rows.append(
                {
                    "label": label,
                    **lane.to_dict(),
                    "cases": part.cases,
                    "values": part.values,
                    "failures": len(part.failures),
                    "worst_share_of_bound": finite(part.worst()),
                    "passed": part.passed,
                }
            )
        return rows + [{"label": name, "engine": name, "missing": how} for name, how in self.missing.items()]


def described(package: Package) -> dict[tuple[str, str | None, str], str]:
    """What every golden vector is: its masks, batch and lengths. Packages of earlier versions do not say."""
    found: dict[tuple[str, str | None, str], str] = {}
    for graph, part in package.graphs.items():
        own = part.manifest.get("golden_cases", {})
        for variant, entry in ((None, part.manifest), *part.variants.items()):
            cases = own | entry.get("golden_cases", {})
            found |= {(graph, variant, case): what for case, what in cases.items()}
    return found


def label_of(package: Package, runtime: str) -> str:
    """What a runtime is called in reports: beside the graph, where there are several."""
    return runtime if package.graph == MODEL else f"{package.graph}, {runtime}"


def replayable(
    package: Package, wanted: Iterable[str] = (), runtime: str = "ort"
) -> dict[str | None, dict[str, dict[str, float]]]:
    """The files of a graph that have golden vectors: variant (None: canonical) → data set → output → bound.

    wanted: the variants alone that are asked for, CANONICAL among them. runtime: OpenVINO has variants of its own, in
    the float32 that its runner asks for; those of other providers are for nobody else. A browser's WebGPU has no
    Attention: it runs OpenVINO's variant, where there is one, in place of the canonical graph. A cache in 8 bits is for
    this Python's onnxruntime alone.
    """
    golden = package.manifest["golden"]
    found: dict[str | None, dict[str, dict[str, float]]] = {
        None: {case: {name: one["bound"] for name, one in outputs.items()} for case, outputs in golden.items()}
    }
    for name, variant in package.variants.items():
        own = runtime in ("openvino", "webgpu") and (variant["provider"], variant["precision"]) == (
            "openvino",
            "float32",
        )
        if (variant["provider"] != "cpu" and not own) or (runtime == "webgpu" and variant.get("padded")):
            continue
        if runtime != "ort" and variant.get("cache_dtype") == "int8":
            continue
        if "golden" in variant:
            found[name] = {
                case: {output: one["bound"] for output, one in outputs.items()}
                for case, outputs in variant["golden"].items()
            }
        elif "tolerances" in variant:
            found[name] = {
                case: {output: variant["tolerances"][output]["absolute"] for output in outputs}
                for case, outputs in golden.items()
            }
    wanted = set(wanted)
    if runtime == "webgpu" and not wanted:
        wanted = {name for name in found if name and package.variant(name)["provider"] == "openvino"} or {CANONICAL}
    return {name: bounds for name, bounds in found.items() if not wanted or (name or CANONICAL) in wanted}
