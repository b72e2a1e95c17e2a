"""Run isoformer packages: numpy and ONNX Runtime, neither torch nor onnx."""

from isoformer.runtime.errors import InputError, IsoformerError, PackageError, ProviderError
from isoformer.runtime.package import Package, load
from isoformer.runtime.session import Graphs, Session

__all__ = ["Graphs", "InputError", "IsoformerError", "Package", "PackageError", "ProviderError", "Session", "load"]
