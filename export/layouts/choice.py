"""What the user says of a conversion."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """precision: None leaves it to the package. force: replaces a folder of a layout that stands at the place."""

    precision: str | None = None
    provider: str = "cpu"
    force: bool = False
