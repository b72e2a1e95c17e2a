"""Run isoformer packages: numpy and ONNX Runtime, neither torch nor onnx."""

from isoformer.runtime.errors import InputError, IsoformerError, PackageError, ProviderError
from isoformer.runtime.package import Package, load
from isoformer.runtime.session import Session

__all__ = ["InputError", "IsoformerError", "Package", "PackageError", "ProviderError", "Session", "load"]
