"""The routes: an ASGI application over one package."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.extras import library
from isoformer.runtime.package import Package
from isoformer.runtime.serve import completions, inference
from isoformer.runtime.serve.batching import Batcher
from isoformer.runtime.serve.completions import Form, Generation, Generator
from isoformer.runtime.serve.limits import Limits, RefusedError, timed_out, too_large
from isoformer.runtime.serve.metrics import Metrics
from isoformer.runtime.session import Graphs, Session

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
BIG = 2**16  # bytes of a body that is read in another thread, so that the loop goes on
CLOSED = 499  # nginx's number for a client that went away before the answer


class Server:
    """One package's models, their queues, and the handlers of the routes.

    session: as `open_fastest` gives it. name: of the model; the graphs of a package of several are called name.graph.
    """

    def __init__(self, session: Session | Graphs, name: str, limits: Limits | None = None) -> None:
        self.name, self.limits, self.metrics = name, limits or Limits(), Metrics()
        self.package: Package = session.package
        graphs = {name: session} if isinstance(session, Session) else {f"{name}.{g}": s for g, s in session.items()}
        self.models = {
            model: Batcher(graph.signature, graph.run, self.limits, self.metrics.batched)
            for model, graph in graphs.items()
        }
        self.generator: Generator | None = None
        if isinstance(session, Session) and self.package.task.get("name") == "generate":
            self.generator = Generator(session, self.limits, self.metrics.generated)
        self.metrics.watch(lambda: sum(batcher.depth for batcher in self._queues()))
        self.ready = True

    def _queues(self) -> list[Batcher | Generator]:
        return [*self.models.values(), *([self.generator] if self.generator else [])]

    def stop(self) -> None:
        """Returns when everything that was accepted has its answer."""
        self.ready = False
        for queue in self._queues():
            queue.stop()

    def batcher(self, model: str) -> Batcher:
        if model not in self.models:
            raise RefusedError(404, f"there is no model {inference.shown(model)}, but {', '.join(self.models)}")
        return self.models[model]

    async def infer(self, request: Any) -> Any:
        """POST v2/models/{model}/infer"""
        model, start = request.path_params["model"], time.monotonic()
        batcher = self.batcher(model)
        batcher.refuse_busy()  # before the body is read
        body = await read_body(request, self.limits)
        header = request.headers.get(inference.LENGTH_HEADER)
        arguments = (body, header, batcher.signature, self.limits)
        wanted = await (
            asyncio.to_thread(inference.parse, *arguments) if len(body) > BIG else _now(inference.parse, *arguments)
        )
        future = batcher.submit(wanted.feeds, list(wanted.outputs))
        left = self.limits.timeout - (time.monotonic() - start)
        arrays = await _unless_gone(request, asyncio.wrap_future(future), left, self.limits.timeout)
        content, headers = inference.answer(wanted, model, arrays)
        return library("starlette.responses").Response(content, headers=headers)

    async def complete(self, request: Any, *, chat: bool) -> Any:
        """POST v1/completions and v1/chat/completions"""
        responses = library("starlette.responses")
        if self.generator is None:
            raise RefusedError(404, f"{self.name} generates nothing: it is for {self.package.task.get('name')}")
        self.generator.refuse_busy()
        data = inference.read_json(await read_body(request, self.limits))
        model = data.get("model", self.name)
        if model != self.name:
            raise RefusedError(404, f"there is no model {inference.shown(str(model))}, but {self.name}")
        wanted = await asyncio.to_thread(self.generator.read, data, chat=chat)
        generation = self.generator.submit(wanted)
        form = Form(self.name, wanted, chat=chat)
        try:
            # Nothing is said before the first token, so that an error has a status of its own.
            event = await _unless_gone(request, generation.events.get(), self.limits.timeout, self.limits.timeout)
            if event.error is not None:
                raise event.error
            if wanted.stream:
                return responses.StreamingResponse(
                    _stream(generation, form, event),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-store"},
                )
            limit = self.limits.generation_timeout
            return responses.JSONResponse(await _unless_gone(request, _whole(generation, form, event), limit, limit))
        except BaseException:
            generation.cancelled.set()
            raise


async def _now(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


async def _whole(generation: Generation, form: Form, event: completions.Event) -> dict[str, Any]:
    text = ""
    while True:
        text += event.text
        if event.finish is not None:
            return form.whole(text, event.finish, event.new_tokens)
        event = await generation.events.get()
        if event.error is not None:
            raise event.error


async def _stream(generation: Generation, form: Form, event: completions.Event) -> AsyncIterator[bytes]:
    """The events as they come. Closed early, as when the client goes away, it stops the generation."""
    try:
        if head := form.first():
            yield head
        while True:
            if event.error is not None:
                yield completions.error_event(event.error)
                return
            if content := form.piece(event):
                yield content
            if event.finish is not None:
                return
            event = await generation.events.get()
    finally:
        generation.cancelled.set()


async def _unless_gone(request: Any, work: Awaitable[Any], left: float, limit: float) -> Any:
    """What `work` gives. Raises RefusedError when its time is over, or the client is gone; then `work` is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise RefusedError(CLOSED, "the client went away") if done else timed_out(limit)
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Any, limits: Limits) -> bytes:
    """The body. Raises RefusedError for one that is too large (413), compressed (415) or comes too slowly (408)."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "a compressed body is not read here; send it as it is")
    stated = request.headers.get("content-length", "0")
    over = f"a body may have {limits.body} bytes at most"
    if not stated.isdigit() or int(stated[:20]) > limits.body:
        raise too_large(over)
    parts, length = [], 0
    try:
        async with asyncio.timeout(limits.timeout):
            async for part in request.stream():
                length += len(part)
                if length > limits.body:
                    raise too_large(over)
                parts.append(part)
    except TimeoutError:
        raise RefusedError(408, f"the body did not come within {limits.timeout:g} s", {"Connection": "close"}) from None
    return b"".join(parts)


def make_app(server: Server) -> Any:
    """The ASGI application; when its lifespan ends, the server's queues are worked off."""
    applications, routing = library("starlette.applications"), library("starlette.routing")
    responses, exceptions = library("starlette.responses"), library("starlette.exceptions")
    requests = library("starlette.requests")

    def say(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        return responses.JSONResponse(data, status, headers=headers)

    async def live(_request: Any) -> Any:
        return say({"live": True})

    async def ready(request: Any) -> Any:
        if "model" in request.path_params:
            server.batcher(request.path_params["model"])
        return say({"ready": server.ready}, 200 if server.ready else 503)

    async def about(_request: Any) -> Any:
        from importlib.metadata import version

        return say({"name": "isoformer", "version": version("isoformer"), "extensions": ["binary_tensor_data"]})

    async def model(request: Any) -> Any:
        name = request.path_params["model"]
        return say(inference.metadata(name, server.batcher(name).signature))

    async def listed(_request: Any) -> Any:
        return say({"object": "list", "data": [_entry(server.name)] if server.generator else []})

    async def entry(request: Any) -> Any:
        if server.generator is None or request.path_params["model"] != server.name:
            raise RefusedError(404, "there is no such model")
        return say(_entry(server.name))

    async def chat(request: Any) -> Any:
        return await server.complete(request, chat=True)

    async def complete(request: Any) -> Any:
        return await server.complete(request, chat=False)

    async def metrics(_request: Any) -> Any:
        return responses.Response(server.metrics.page(), headers={"Content-Type": server.metrics.content_type})

    def failed(request: Any, error: Exception) -> Any:
        status: int = 500
        headers: Mapping[str, str] | None = None
        if isinstance(error, RefusedError):
            status, headers = error.status, error.headers
        elif isinstance(error, InputError):
            status = 400
        elif isinstance(error, exceptions.HTTPException):
            status, headers, detail = (getattr(error, name) for name in ("status_code", "headers", "detail"))
            error = InputError(str(detail))
        elif isinstance(error, requests.ClientDisconnect):
            status = CLOSED
        if request.url.path.startswith("/v1/"):
            return say({"error": completions.describe(error)}, status, headers)
        return say({"error": str(error) if isinstance(error, IsoformerError) else "internal error"}, status, headers)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.stop)

    models = [
        ("", model, "GET"),
        ("/ready", ready, "GET"),
        ("/infer", server.infer, "POST"),
    ]
    routes = [
        routing.Route("/v2", about),
        routing.Route("/v2/health/live", live),
        routing.Route("/v2/health/ready", ready),
        *(
            routing.Route(f"/v2/models/{{model}}{version}{path}", handler, methods=[method])
            for path, handler, method in models
            for version in ("", "/versions/1")
        ),
        routing.Route("/v1/models", listed),
        routing.Route("/v1/models/{model}", entry),
        routing.Route("/v1/completions", complete, methods=["POST"]),
        routing.Route("/v1/chat/completions", chat, methods=["POST"]),
        routing.Route("/metrics", metrics),
    ]
    handled = dict.fromkeys((IsoformerError, exceptions.HTTPException, requests.ClientDisconnect, Exception), failed)
    app = applications.Starlette(routes=routes, exception_handlers=handled, lifespan=lifespan)
    app.add_middleware(_Observed, server=server)
    return app


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "isoformer"}


class _Observed:
    """Counts and times every request, and closes a connection whose client does not read its answer."""

    def __init__(self, app: Any, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def timed(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(self.server.limits.timeout):
                await send(message)

        try:
            await self.app(scope, receive, timed)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.server.metrics.requests.labels(route, str(status)).inc()
            self.server.metrics.seconds.labels(route).observe(time.perf_counter() - start)
