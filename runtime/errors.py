"""Errors for people: each message is one line that says what is wrong and what to do."""


class IsoformerError(Exception):
    """Any error that the user can mend; the command line prints its message and exits with 2."""


class PackageError(IsoformerError):
    """The package on disk is missing, incomplete, altered or of a later schema."""


class ProviderError(IsoformerError):
    """The execution provider that was asked for does not run the graph here."""


class InputError(IsoformerError, ValueError):
    """An input has a wrong name, dtype, rank, size or value."""
