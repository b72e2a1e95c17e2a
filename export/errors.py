"""The error of this half."""

from isoformer.runtime.errors import IsoformerError


class ExportError(IsoformerError):
    """The model cannot be exported, or what came out is not what was promised. Nothing has been written."""
