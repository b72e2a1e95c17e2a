"""The parts of a job by Ray Data: an actor a worker, each with a session of its own.

What travels are numbers of parts and places in the input; every worker reads its rows and writes its part. So the
output is the one that `in_turn` gives, and PACKAGE, IN and OUT have to be reachable under the same names by all:
on a cluster, on a shared file system.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoformer.runtime.batch import parts
from isoformer.runtime.batch.folder import Folder, Part
from isoformer.runtime.batch.job import Engine, Job, Progress, Work, count, share
from isoformer.runtime.batch.rows import Place
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.extras import library


def on_ray(workers: int) -> Engine:
    """An engine with so many actors, on the cluster that RAY_ADDRESS names, else on this machine.

    Raises IsoformerError where Ray is not installed.
    """
    ray = library("ray")
    data = library("ray.data")

    def engine(work: Work, folder: Folder, progress: Progress) -> None:
        job = _absolute(work.job)
        todo = [{"number": number, "start": list(chunk.start)} for number, chunk in work.chunks(folder.parts)]
        rows, bad = count(folder)
        progress(rows, bad, share(folder, work))
        if not todo:
            return
        if not ray.is_initialized():
            local = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
            ray.init(log_to_driver=False, logging_level="ERROR", **local)
        data.DataContext.get_current().enable_progress_bars = False
        made = data.from_items(todo, override_num_blocks=len(todo)).map(
            _worker(),
            fn_constructor_kwargs={"job": job, "output": work.output, "target": str(job.output)},
            compute=data.ActorPoolStrategy(size=min(workers, len(todo))),
            num_cpus=job.threads or 1,
        )
        try:
            for record in made.iter_rows():
                if record["error"]:
                    raise IsoformerError(record["error"])
                part = Part.read(record["part"])
                folder.add(part)
                rows, bad = rows + part.good + part.bad, bad + part.bad
                progress(rows, bad, share(folder, work))
        except ray.exceptions.RayError as error:  # a worker that died, a cluster that went away
            raise IsoformerError(f"Ray failed: {_last_line(error)}; give the same command again") from error

    return engine


def _last_line(error: Exception) -> str:
    """What went wrong at the bottom of Ray's many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _absolute(job: Job) -> Job:
    """The job with paths that a worker, whose folder is another, finds."""
    return replace(job, package=job.package.absolute(), source=job.source.absolute(), output=job.output.absolute())


def _worker() -> Callable[..., Any]:
    class Worker:
        """One actor: called with a part's number and place, it makes the part."""

        def __init__(self, job: Job, output: str, target: str) -> None:
            self.work, self.folder = Work(job, output), Folder(Path(target))

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            try:
                chunk = next(self.work.source.chunks(Place(*map(int, row["start"])), self.work.rows))
                part = parts.write(self.folder, int(row["number"]), self.work.output, chunk, self.work.answer(chunk))
            except IsoformerError as error:
                return {"part": None, "error": str(error)}
            return {"part": part.to_dict(), "error": ""}

    return Worker
