"""The routes, as a client sees them."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from isoformer.runtime import Session
from isoformer.runtime.generation import Settings
from isoformer.runtime.serve.app import Server, make_app
from isoformer.runtime.serve.limits import Limits
from isoformer.runtime.tasks import generate
from tests.runtime.conftest import CHATML, END, POSITIONS, START

IDS = [[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def tensors(ids: list = IDS, mask: list = MASK) -> dict[str, Any]:
    shape = [len(ids), len(ids[0])]
    return {
        "inputs": [
            {"name": "input_ids", "datatype": "INT64", "shape": shape, "data": ids},
            {"name": "attention_mask", "datatype": "INT64", "shape": shape, "data": mask},
        ],
        "outputs": [{"name": "sentence_embedding"}],
    }


@pytest.fixture
def server(tiny_package: Path) -> Server:
    return Server(Session(tiny_package), "tiny", Limits(body=5000, queue=2))


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(make_app(server)) as client:
        yield client


@pytest.fixture
def talker(generator_package: Path) -> Iterator[TestClient]:
    """A client of a decoder's server."""
    with TestClient(make_app(Server(Session.fastest(generator_package), "fox", Limits(max_tokens=40)))) as client:
        yield client


def test_infer(client: TestClient, tiny_package: Path) -> None:
    expected = Session(tiny_package).run({"input_ids": np.array(IDS), "attention_mask": np.array(MASK)})
    for path in ("/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"):
        found = client.post(path, json=tensors())
        assert found.status_code == 200
        (output,) = found.json()["outputs"]
        np.testing.assert_allclose(
            np.array(output["data"]).reshape(output["shape"]), expected["sentence_embedding"], atol=1e-6
        )


def test_health_and_metadata(client: TestClient, server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny", "/v2"):
        assert client.get(path).status_code == 200, path
    assert client.get("/v2/models/tiny").json()["inputs"][0] == {
        "name": "input_ids",
        "datatype": "INT64",
        "shape": [-1, -1],
    }
    assert client.get("/v1/models").json()["data"] == []
    server.ready = False
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "words"),
    [
        ("get", "/v2/models/other", {}, 404, "there is no model other, but tiny"),
        ("post", "/v2/models/..%2F..%2Fetc/infer", {"json": {}}, 404, ""),
        ("get", "/v2/models/tiny/infer", {}, 405, "Method Not Allowed"),
        ("post", "/v2/models/tiny/infer", {"content": b"\0\xff"}, 400, "not JSON"),
        ("post", "/v2/models/tiny/infer", {"content": b" " * 5001}, 413, "5000 bytes at most"),
        ("post", "/v2/models/tiny/infer", {"content": iter([b" " * 2000] * 3)}, 413, "5000 bytes at most"),
        ("post", "/v2/models/tiny/infer", {"content": b"", "headers": {"Content-Encoding": "gzip"}}, 415, "compressed"),
        ("post", "/v2/models/tiny/infer", {"json": tensors([[3] * 65], [[1] * 65])}, 400, "takes 64 at most"),
        ("post", "/v1/chat/completions", {"json": {}}, 404, "generates nothing"),
    ],
)
def test_refusals(client: TestClient, method: str, path: str, options: Any, status: int, words: str) -> None:
    found = client.request(method, path, **options)
    assert found.status_code == status
    error = found.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert words in message
    assert "\n" not in message


def test_a_busy_server_refuses_and_answers_what_it_has_accepted(
    client: TestClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, gate, entered = server.models["tiny"], threading.Event(), threading.Event()
    run = batcher._run

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert gate.wait(60)
        return run(*arguments)

    monkeypatch.setattr(batcher, "_run", slow)
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(client.post("/v2/models/tiny/infer", json=tensors()).status_code)
        )
        for _ in range(3)
    ]
    threads[0].start()
    assert entered.wait(60)
    for thread in threads[1:]:
        thread.start()
    while batcher.depth < 2:
        time.sleep(0.01)
    refused = client.post("/v2/models/tiny/infer", json=tensors())
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert "isoformer_waiting 2.0" in client.get("/metrics").text
    gate.set()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 3
    page = client.get("/metrics").text
    assert 'isoformer_requests_total{route="/v2/models/{model}/infer",status="429"} 1.0' in page
    assert f"isoformer_tokens_total {3 * 8}.0" in page
    assert f"isoformer_padding_total {3 * 2}.0" in page


def test_an_answer_that_does_not_come(tiny_package: Path) -> None:
    server, gate = Server(Session(tiny_package), "tiny", Limits(timeout=0.1)), threading.Event()
    setattr(server.models["tiny"], "_run", lambda *_arguments: gate.wait(60) and {})  # noqa: B010  pyright knows its type
    with TestClient(make_app(server)) as client:
        found = client.post("/v2/models/tiny/infer", json=tensors())
        gate.set()
    assert (found.status_code, found.json()) == (504, {"error": "there was no answer within 0.1 s"})


def greedy(package: Path, text: str, tokens: int) -> str:
    return generate.run(Session.fastest(package), [text], settings=Settings(tokens))[0]["text"]


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_completions(talker: TestClient, generator_package: Path) -> None:
    wanted = {"model": "fox", "prompt": "once upon a", "max_tokens": 7, "temperature": 0}
    found = talker.post("/v1/completions", json=wanted).json()
    expected = greedy(generator_package, "once upon a", 7)
    assert found["choices"] == [{"index": 0, "text": expected, "logprobs": None, "finish_reason": "length"}]
    assert found["usage"]["completion_tokens"] == 7
    streamed = events(talker.post("/v1/completions", json=wanted | {"stream": True}))
    assert "".join(event["choices"][0]["text"] for event in streamed) == expected
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"


def test_chat(talker: TestClient, generator_package: Path) -> None:
    messages = [
        {"role": "system", "content": "be a fox"},
        {"role": "user", "content": [{"type": "text", "text": "ça va"}]},
    ]
    rendered = f"{START}system\nbe a fox{END}\n{START}user\nça va{END}\n{START}assistant\n"
    expected = greedy(generator_package, rendered, 9)
    wanted = {"messages": messages, "max_completion_tokens": 9, "temperature": 0}
    found = talker.post("/v1/chat/completions", json=wanted).json()
    assert found["choices"][0]["message"] == {"role": "assistant", "content": expected}
    streamed = events(
        talker.post("/v1/chat/completions", json=wanted | {"stream": True, "stream_options": {"include_usage": True}})
    )
    assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed[:-1]) == expected
    assert streamed[-1]["usage"]["total_tokens"] == found["usage"]["total_tokens"]
    assert talker.get("/v1/models").json()["data"][0]["id"] == "fox"
    assert "{% for" in CHATML


def test_stop_strings_and_seeds(talker: TestClient, generator_package: Path) -> None:
    text = greedy(generator_package, "once", 30)
    stop = next(text[n : n + 2] for n in range(4, len(text)) if text[n : n + 2].isascii())
    wanted = {"prompt": "once", "max_tokens": 30, "temperature": 0, "stop": stop}
    (choice,) = talker.post("/v1/completions", json=wanted).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.find(stop)], "stop")
    drawn = {"prompt": "once", "max_tokens": 20, "seed": 5}
    one, same, other = (
        talker.post("/v1/completions", json=drawn | {"seed": seed}).json()["choices"] for seed in (5, 5, 6)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": None}, "messages is not a list"),
        ({"messages": []}, "messages is not a list"),
        ({"messages": ["hello"]}, "not an object"),
        ({"messages": [{"role": "user", "content": None}]}, "content of a message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content of a message"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, f"takes {POSITIONS - 1} at most"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "Unicode"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 41}, "from 1 to 40"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"n": 2}, "n is not offered"),
        ({"logprobs": True}, "logprobs is not offered"),
        ({"tools": [{}]}, "tools is not offered"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 3}, "stream"),
    ],
)
def test_chats_that_are_refused(talker: TestClient, change: dict[str, Any], words: str) -> None:
    data = {"messages": [{"role": "user", "content": "hi"}]} | change
    found = talker.post("/v1/chat/completions", content=json.dumps(data))
    assert found.status_code == 400
    assert words in found.json()["error"]["message"]
    assert found.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [[10**6], [3, 2**32], [2**70], [-1], [True], [[3], [5]]])
def test_prompts_of_ids_that_are_refused(talker: TestClient, prompt: list[Any]) -> None:
    found = talker.post("/v1/completions", json={"prompt": prompt})
    assert found.status_code == 400
    assert "prompt" in found.json()["error"]["message"]


def test_another_model(talker: TestClient) -> None:
    found = talker.post("/v1/completions", json={"model": "gpt", "prompt": "x"})
    assert (found.status_code, found.json()["error"]["message"]) == (404, "there is no model gpt, but fox")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_generation(generator_package: Path, stream: bool) -> None:
    """Spoken in ASGI, where going away is a message: after the first tokens of a stream, or while waiting."""
    server = Server(Session.fastest(generator_package), "fox")
    assert server.generator is not None
    stats: list[Any] = []
    server.generator._observe = lambda found, stopped: stats.append((found.new_tokens, stopped))
    emit_first = threading.Event()
    original = server.generator._generate

    def generated(generation: Any, found: Any) -> None:
        emit = generation.emit

        def slow(event: Any) -> None:
            emit(event)
            emit_first.set()
            time.sleep(0.02)

        generation.emit = slow
        original(generation, found)

    setattr(server.generator, "_generate", generated)  # noqa: B010  pyright knows its type

    async def visit() -> None:
        body = json.dumps({"prompt": "once", "max_tokens": 140, "temperature": 0, "stream": stream}).encode()
        messages = iter([{"type": "http.request", "body": body}])

        async def receive() -> dict[str, Any]:
            if message := next(messages, None):
                return message
            while not emit_first.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            pass

        path = "/v1/completions"
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST", "path": path}
        scope |= {"headers": [], "query_string": b"", "http_version": "1.1", "scheme": "http", "server": ("x", 1)}
        await asyncio.wait_for(
            make_app(server)(scope | {"raw_path": path.encode(), "root_path": ""}, receive, send), 60
        )

    asyncio.run(visit())
    server.stop()
    ((tokens, stopped),) = stats
    assert stopped
    assert 0 < tokens < 60


def test_the_command(tiny_package: Path) -> None:
    """A process: it says where it listens, answers, and on SIGTERM answers what it has accepted and ends with 0."""
    command = [sys.executable, "-m", "isoformer.runtime.cli", "serve", str(tiny_package), "--port", "0"]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("serving tiny on http://127.0.0.1:"), line
            port = int(line.rsplit(":", 1)[1])
            body = json.dumps(tensors()).encode()
            head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.settimeout(60)
                connection.sendall(head + body[:50])
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)  # the request is here in part
                time.sleep(0.3)
                connection.sendall(body[50:])
                assert connection.recv(12) == b"HTTP/1.1 200"
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_a_port_that_is_taken(tiny_package: Path, isoformer: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = isoformer("serve", tiny_package, "--port", taken.getsockname()[1])
    assert found.returncode == 2
    assert found.stderr.endswith("cannot be listened on: Address already in use\n")
    assert len(found.stderr.splitlines()) == 1
