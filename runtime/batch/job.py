"""A job: every part of the input through the package's task, in order or as they are handed out; then one file."""

import contextlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime import tasks, tuning
from isoformer.runtime.batch import parts
from isoformer.runtime.batch.folder import Folder, Part
from isoformer.runtime.batch.rows import Chunk, Place, Source, format_of
from isoformer.runtime.errors import InputError, IsoformerError, PackageError, ProviderError
from isoformer.runtime.generation import Settings
from isoformer.runtime.package import MANIFEST, Package, load, sha256
from isoformer.runtime.providers import ProviderName
from isoformer.runtime.session import Graphs, Session, open_fastest
from isoformer.runtime.tasks import embed

# Rows of a part, fewer where each takes long: a kill loses what was not yet a whole part.
PART_ROWS = 1024
PART_ROWS_OF = {"embed": 8192, "classify": 8192}  # of many rows more have the same length, which needs no padding
PART_ROWS_OF |= {"generate": 64, "translate": 128, "transcribe": 4, "transcribe-ctc": 4, "generate-image": 8}
PART_ROWS_OF |= {"classify-video": 8, "classify-image": 64, "embed-image": 64}
TOGETHER = ("match-image-text",)  # tasks whose inputs are answered together

# Makes every part that the folder's journal does not have.
Engine = Callable[["Work", Folder, "Progress"], None]
# Called with rows done, bad rows among them, the share of the input that is done.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Job:
    """What is done with every row. Paths may be relative.

    column: of the texts. prefix: of the names of new columns; None is none, or the task's name where one would be
    named as `column`. options: keyword arguments of the task's `run`, but settings: fields of `Settings`.
    part_rows: None is by the task.
    """

    package: Path
    source: Path
    output: Path
    column: str = "text"
    prefix: str | None = None
    provider: ProviderName = "cpu"
    precision: str | None = None
    threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    part_rows: int | None = None


@dataclass(frozen=True)
class Outcome:
    """rows: good ones; bad: the others, in the file `rejected`; computed, seconds: rows and time of this run alone."""

    rows: int
    bad: int
    rejected: Path | None
    computed: int
    seconds: float


def run(
    job: Job,
    *,
    force: bool = False,
    engine: Engine | None = None,
    progress: Progress = lambda _rows, _bad, _share: None,
) -> Outcome:
    """Does the job, or what is left of it, and writes job.output; rows that cannot be answered go to a side file.

    The output does not depend on how often and where the job was stopped. engine: makes the parts that are not there
    yet; `in_turn` by default.

    Raises InputError for a file that cannot be read or written, an output that exists (unless `force`), and the
    remains of another job (unless `force`), and what opening the package raises.
    """
    output, started = job.output, time.perf_counter()
    kind = format_of(output)
    work, folder = Work(job, kind), Folder(output)
    try:
        with folder.locked():
            _begin(folder, job, work.package, force=force)
            before = sum(part.good + part.bad for part in folder.parts.values())
            if not folder.whole:
                try:
                    (engine or in_turn)(work, folder, progress)
                except (IsoformerError, OSError):
                    if not folder.parts:
                        folder.remove()  # nothing is lost
                    raise
                folder.finish()
            rejected = _publish(folder, output, kind)
            done = folder.parts.values()
            good, bad = sum(part.good for part in done), sum(part.bad for part in done)
            folder.remove()
    except OSError as error:
        reason = error.strerror or str(error)
        kept = f"; what is done stays in {folder.path}: give the same command again" if folder.parts else ""
        raise InputError(f"{output} cannot be written: {reason}{kept}") from None
    seconds = time.perf_counter() - started
    return Outcome(good, bad, rejected if bad else None, good + bad - before, seconds)


def _begin(folder: Folder, job: Job, package: Package, *, force: bool) -> None:
    """Leaves the folder with this job and its journal."""
    wanted, found = _identity(job, package), folder.job()
    if found is not None and found["of"] == wanted:
        folder.read_journal()
        return
    if found is not None and not force:
        other = [name for name, value in wanted.items() if found["of"].get(name) != value]
        raise InputError(
            f"{folder.path} holds a job that was stopped and differs in {', '.join(other)}: "
            "give the same command again, or --force to begin anew"
        )
    for taken in (job.output, rejected_file(job.output)):
        if taken.is_dir():
            raise InputError(f"{taken} is a folder; choose another place")
        if not force and (taken.exists() or taken.is_symlink()):
            raise InputError(f"{taken} exists; --force replaces it")
    folder.begin({"of": wanted})


def _identity(job: Job, package: Package) -> dict[str, Any]:
    """What the rows of the output depend on."""
    try:
        state = job.source.stat()
    except OSError as error:
        raise InputError(f"{job.source} cannot be read: {error.strerror or error}") from None
    same = {
        name: value for name, value in asdict(job).items() if name not in ("package", "source", "output", "threads")
    }
    wanted = same | {
        "package": sha256(package.path / MANIFEST),
        "tuned": {} if job.threads else _tuned(package, job),
        "source": [str(job.source.absolute()), state.st_size, state.st_mtime_ns],
        "part_rows": job.part_rows or default_rows(package),
    }
    if format_of(job.output) != "parquet":
        wanted["orjson"] = parts.orjson_version()
    return json.loads(json.dumps(wanted))  # as it is when it has been read


def _tuned(package: Package, job: Job) -> dict[str, Any]:
    """What `isoformer tune` has chosen of each graph: others would answer with other last digits."""
    found = {}
    for name, part in package.graphs.items():
        precision = job.precision if job.precision in part.precisions(job.provider) else None
        if record := tuning.in_use(part, job.provider, precision):
            found[name] = {key: record.to_dict()[key] for key in ("table", "cost")}
    return found


def default_rows(package: Package) -> int:
    """Rows of a part."""
    return PART_ROWS_OF.get(package.task.get("name", ""), PART_ROWS)


def rejected_file(output: Path) -> Path:
    """Where the bad rows go: JSON lines with `row`, `reason` and `input`."""
    return output.with_name(f"{output.stem}.rejected.jsonl")


def _publish(folder: Folder, output: Path, kind: str) -> Path:
    """All parts as `output`, and the bad rows beside it. Done again after a kill, it leads to the same."""
    whole, rejected = folder.path / "whole", rejected_file(output)
    if parts.merge_bad(folder, whole):
        whole.replace(rejected)
    else:
        rejected.unlink(missing_ok=True)
    parts.merge(folder, kind, whole)
    whole.replace(output)
    return rejected


class Work:
    """What makes parts: the package's session, opened when the first part is asked for, and the rows of the input."""

    def __init__(self, job: Job, output: str) -> None:
        self.job, self.output = job, output
        self.source = Source(job.source, job.column)
        self.package = load(job.package)
        self.module = tasks.of(self.package)
        self.rows = job.part_rows or default_rows(self.package)
        if self.package.task["name"] in TOGETHER:
            raise PackageError(
                f"{job.package} is for {self.package.task['name']}, which answers its inputs together, not row by row"
            )
        self.options = _options(self.module, job, self.package)
        self._session: Session | Graphs | None = None

    @property
    def session(self) -> Session | Graphs:
        if self._session is None:
            job = self.job
            self._session = open_fastest(self.package, job.provider, precision=job.precision, threads=job.threads)
        return self._session

    def chunks(self, done: dict[int, Part]) -> Iterator[tuple[int, Chunk]]:
        """The parts that are not done: number and rows. `done` is asked anew at every part."""
        number, start = 0, Place(0, 0)
        while True:
            while number in done:
                number, start = number + 1, done[number].end
            for chunk in self.source.chunks(start, self.rows):
                yield number, chunk
                number, start = number + 1, chunk.end
                if number in done:
                    break
            else:
                return

    def answer(self, chunk: Chunk) -> list[dict[str, Any] | str]:
        """New columns for every row, or why it is bad. They depend on the chunk alone."""
        answers: list[dict[str, Any] | str] = [row.reason or "" for row in chunk.rows]
        good = [place for place, row in enumerate(chunk.rows) if row.reason is None]
        found = self._answers([chunk.rows[place].text for place in good], chunk.start.row)
        for place, result in zip(good, found, strict=True):
            answers[place] = result if isinstance(result, str) else self._named(result, chunk, place)
        return answers

    def _answers(self, texts: Sequence[str], first: int) -> list[dict[str, Any] | str]:
        """The task's answers; a text that it refuses is found by halves, so that a few cost little.

        first: of the draws of a text that is generated, which are of (seed + first, its number).
        """
        if not texts:
            return []
        try:
            if self.module is embed and isinstance(self.session, Session):  # without lists of floats in between
                return [{"embedding": row} for row in embed.embeddings(self.session, texts, **self.options)]
            results = self.module.run(self.session, texts, **self._options(first))
        except (PackageError, ProviderError):
            raise
        except IsoformerError as error:
            if len(texts) == 1:
                return [str(error)]
            half = len(texts) // 2
            return self._answers(texts[:half], first) + self._answers(texts[half:], first + half)
        return [
            {name: _compact(name, value) for name, value in result.items() if name != "input"} for result in results
        ]

    def _options(self, first: int) -> dict[str, Any]:
        settings = self.options.get("settings")
        if settings is None or settings.seed is None:
            return self.options
        return self.options | {"settings": replace(settings, seed=settings.seed + first)}

    def _named(self, result: dict[str, Any], chunk: Chunk, place: int) -> dict[str, Any] | str:
        """The result under the names of its columns; why not, where the row has one of them already."""
        prefix = self.job.prefix
        if prefix is None:
            prefix = f"{self.package.task['name'].replace('-', '_')}_" if self.job.column in result else ""
        named = {prefix + name: value for name, value in result.items()}
        values = chunk.rows[place].values or {}
        there = chunk.table.column_names if chunk.table is not None else values
        if taken := [name for name in named if name in there]:
            reason = f"it has a column {taken[0]!r} already, as the task would name a new one; --prefix names those"
            if self.source.format != "jsonl":  # so has every row
                raise InputError(f"{self.source.path}: {reason}")
            return reason
        return named


def _compact(name: str, value: Any) -> Any:
    """Vectors as float32, which they are: a tenth of the memory."""
    return np.array(value, np.float32) if name == "embedding" else value


def _options(module: Any, job: Job, package: Package) -> dict[str, Any]:
    taken, options = inspect.signature(module.run).parameters, dict(job.options)
    settings = options.pop("settings", None)
    if foreign := [name for name in options if name not in taken and options[name]]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise InputError(f"{names}: not for the task {package.task['name']}, which {job.package} is for")
    options = {name: value for name, value in options.items() if name in taken}
    if settings:
        if "settings" not in taken:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in settings)
            raise InputError(f"{names}: not for the task {package.task['name']}, which {job.package} is for")
        options["settings"] = Settings(**settings)
    return options


def in_turn(work: Work, folder: Folder, progress: Progress) -> None:
    """One part after the other in this process; while one is written, the next is computed."""
    rows, bad = count(folder)
    progress(rows, bad, share(folder, work))
    with ThreadPoolExecutor(1) as writer:
        pending: Future[Part] | None = None
        with contextlib.ExitStack() as stack:
            stack.callback(writer.shutdown, cancel_futures=True)
            for number, chunk in work.chunks(folder.parts):
                answers = work.answer(chunk)
                if pending is not None:
                    pending.result()
                pending = writer.submit(write_part, folder, number, work.output, chunk, answers)
                rows += len(chunk.rows)
                bad += sum(isinstance(answer, str) for answer in answers)
                progress(rows, bad, chunk.end.position / max(1, work.source.size))
            if pending is not None:
                pending.result()


def write_part(folder: Folder, number: int, output: str, chunk: Chunk, answers: list[dict[str, Any] | str]) -> Part:
    part = parts.write(folder, number, output, chunk, answers)
    folder.add(part)
    return part


def share(folder: Folder, work: Work) -> float:
    """How much of the input is in parts."""
    done = sum(part.end.position - part.start.position for part in folder.parts.values())
    return done / max(1, work.source.size)


def count(folder: Folder) -> tuple[int, int]:
    """Rows done before, and the bad ones among them."""
    done = folder.parts.values()
    return sum(part.good + part.bad for part in done), sum(part.bad for part in done)
