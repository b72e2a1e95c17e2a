"""Runners: programs that replay a package's golden vectors in other runtimes (docs/decisions/runners.md).

replay.py        any onnxruntime of Python; it stands alone, and runs in environments that have no isoformer
environments.py  environments of their own for older onnxruntimes and for OpenVINO
programs.py      how each runner is started, and what it says
"""
