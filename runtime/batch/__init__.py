"""A package's task on a file of any size: Parquet, JSON lines or CSV in and out, in parts that a kill cannot harm.

rows.py    the file in: rows, chunk by chunk, from any place that a journal names
parts.py   the rows out: one file a part, and all of them as one
folder.py  what stands beside OUT until it is done: the job, its journal, its parts
job.py     one part after the other; ray_engine.py: the same parts by Ray Data's actors
"""

from isoformer.runtime.batch.job import Job, Outcome, run

__all__ = ["Job", "Outcome", "run"]
