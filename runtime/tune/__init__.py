"""`isoformer tune`: measures the equal graphs of a package on this machine, and which is the fastest for which batch.

candidates.py   the graphs and settings that are measured, stage by stage
inputs.py       the batches that they are measured with
worker.py       one candidate in a process of its own; workers.py: the other end of it
decide.py       from times to choices
job.py          the whole of it, which can be stopped at any moment
command.py      the command
"""
