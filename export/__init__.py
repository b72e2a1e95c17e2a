"""Export a PyTorch module to a verified isoformer package."""

from isoformer.export.errors import ExportError
from isoformer.export.exporter import export

__all__ = ["ExportError", "export"]
