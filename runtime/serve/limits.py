"""What a server refuses, and how it says so."""

import math
from dataclasses import dataclass

from isoformer.runtime.errors import InputError, IsoformerError


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. tokens: rows × length of a request; batch_tokens: of requests that run together, rows ×
    the longest. queue: requests that wait, one more is refused. timeout: seconds until an answer (of a generation: its
    first token); generation_timeout: until a generation's end. max_tokens: new ones of a generation.

    Raises InputError for a value that is not positive.
    """

    body: int = 32 * 2**20
    tokens: int = 16_384
    length: int = 4096
    batch_tokens: int = 2048
    queue: int = 64
    timeout: float = 30.0
    generation_timeout: float = 300.0
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be a positive number")


class RefusedError(IsoformerError):
    """A request that is answered with `status`, `message` in one line, and `headers`."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


def too_large(message: str) -> RefusedError:
    return RefusedError(413, message)


def busy(seconds: float) -> RefusedError:
    """429; the client may come again after so many seconds, of which a header tells whole ones."""
    wait = max(1, min(60, math.ceil(seconds)))
    return RefusedError(429, f"the server is busy; try again in {wait} s", {"Retry-After": str(wait)})


def timed_out(seconds: float) -> RefusedError:
    return RefusedError(504, f"there was no answer within {seconds:g} s")
