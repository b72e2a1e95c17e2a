"""isoformer serve"""

import os
import signal
import socket
import sys
from typing import Annotated

import typer

from isoformer.runtime.errors import InputError
from isoformer.runtime.extras import library
from isoformer.runtime.options import PackagePath, Precision, Provider, Threads, precision_name
from isoformer.runtime.serve.limits import Limits
from isoformer.runtime.session import open_fastest

DEFAULT = Limits()
CONNECTIONS = 1000


def serve(
    package: PackagePath,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 is every one of this machine")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    name: Annotated[str | None, typer.Option(help="of the model (default: the package's)")] = None,
    provider: Provider = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    queue: Annotated[int, typer.Option(help="requests that wait at most; one more gets 429")] = DEFAULT.queue,
    batch_tokens: Annotated[int, typer.Option(help="tokens of requests that run together")] = DEFAULT.batch_tokens,
    timeout: Annotated[float, typer.Option(help="seconds until an answer, or its first token")] = DEFAULT.timeout,
    generation_timeout: Annotated[float, typer.Option(help="seconds of a generation")] = DEFAULT.generation_timeout,
    max_tokens: Annotated[int, typer.Option(help="new tokens of a generation at most")] = DEFAULT.max_tokens,
    max_body: Annotated[int, typer.Option(help="bytes of a request at most")] = DEFAULT.body,
    max_request_tokens: Annotated[int, typer.Option(help="rows × length of a request at most")] = DEFAULT.tokens,
    max_length: Annotated[int, typer.Option(help="tokens of a sequence at most")] = DEFAULT.length,
) -> None:
    """Serve PACKAGE over HTTP: the Open Inference Protocol (v2/…), and for decoders v1/chat/completions."""
    limits = Limits(
        max_body, max_request_tokens, max_length, batch_tokens, queue, timeout, generation_timeout, max_tokens
    )
    uvicorn = library("uvicorn")
    from isoformer.runtime.serve.app import Server, make_app

    session = open_fastest(
        package, provider, precision=None if precision is None else precision_name(precision), threads=threads
    )
    listening = _listen(host, port)
    server = Server(session, name or session.package.manifest["name"], limits)
    config = uvicorn.Config(
        make_app(server),
        log_level="warning",
        access_log=False,
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(limits.timeout + limits.generation_timeout) + 1,
        server_header=False,
    )
    # uvicorn raises the signal again when all is answered; that is a good end.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    where = f"[{host}]" if ":" in host else host
    print(f"serving {server.name} on http://{where}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OverflowError as error:
        raise InputError(f"{host}:{port} cannot be listened on: {error}") from None
    except OSError as error:
        # Python's own text of it goes on with the address; those of names have numbers that the system does not know.
        reason = error.strerror if error.errno is None or error.errno < 0 else os.strerror(error.errno)
        raise InputError(f"{host}:{port} cannot be listened on: {reason}") from None
