"""A model behind a server: what is asked, tried again and given up, and that the key goes nowhere else."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from peft_study.corpora.chat import ChatServer, ServerConfig
from peft_study.errors import ConfigError, DataError, PeftStudyError

KEY = "sk-very-secret-0123456789"

Reply = Callable[[BaseHTTPRequestHandler], None]


class FakeServer:
    """Answers on localhost with one reply after the other, the last for ever; keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake.headers.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
                fake.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                reply = fake.replies[min(len(fake.bodies), len(fake.replies)) - 1]
                reply(self)

            def do_GET(self) -> None:
                fake.headers.append({"path": f"GET {self.path}", **dict(self.headers.items())})
                send(200, "{}")(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def send(status: int, body: str, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return reply


def says(content: str | None, reason: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    return send(200, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def late(seconds: float, reply: Reply) -> Reply:
    def wait(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        with suppress(OSError):  # The client has gone.
            reply(handler)

    return wait


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte now and then, so that no single wait is long."""
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):
        for _ in range(40):
            handler.wfile.write(b" ")
            time.sleep(0.05)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choi')


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FakeServer()
    yield server
    server.close()


def client(fake: FakeServer, **options: Any) -> ChatServer:
    settings = {"url": fake.url, "model": "m", "timeout_s": 0.3, "tries": 3, "backoff_s": 0.01}
    return ChatServer(ServerConfig.model_validate(settings | options))


def test_a_question_and_its_answer(fake: FakeServer) -> None:
    fake.replies = [says("Four.")]
    assert client(fake, temperature=0.5, max_tokens=7).ask("What is 2+2?", 2**31 + 5) == "Four."
    assert fake.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "What is 2+2?"}],
            "temperature": 0.5,
            "max_tokens": 7,
            "seed": 5,
        }
    ]
    assert fake.headers[0]["path"] == "/v1/chat/completions"
    assert fake.headers[0]["content-type"] == "application/json"
    assert "authorization" not in fake.headers[0]


@pytest.mark.parametrize("reply", [says(None), says("", "stop"), says("So 4 + ", "length")])
def test_an_answer_that_is_cut_off_or_nothing_is_empty(fake: FakeServer, reply: Reply) -> None:
    fake.replies = [reply]
    assert client(fake).ask("a", 0) == ""


@pytest.mark.parametrize(
    "trouble",
    [
        send(500, "oops"),
        send(503, ""),
        send(429, "slow down"),
        send(200, "<html>"),
        send(200, "[]"),
        send(200, '{"choices": []}'),
        send(200, '{"choices": [{"message": "no"}]}'),
        send(200, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")),
        late(0.6, says("too late")),
        drip,
        hang_up,
    ],
)
def test_trouble_that_passes_is_tried_again(fake: FakeServer, trouble: Reply) -> None:
    fake.replies = [trouble, trouble, says("ok")]
    assert client(fake).ask("a", 0) == "ok"
    assert len(fake.bodies) == 3


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (send(500, "oops"), "HTTP 500: oops"),
        (send(200, "<html>"), "its answer is no chat completion: b'<html>'"),
        (late(0.6, says("too late")), "TimeoutError|timed out"),
        (drip, "its answer was not whole in time"),
    ],
)
def test_trouble_that_stays_is_an_error(fake: FakeServer, trouble: Reply, said: str) -> None:
    fake.replies = [trouble]
    with pytest.raises(DataError, match=rf"gave no answer in 3 tries \(.*({said}).*\); see to it, then run again"):
        client(fake).ask("a", 0)
    assert len(fake.bodies) == 3


def test_each_wait_is_twice_as_long(fake: FakeServer) -> None:
    fake.replies = [send(500, ""), send(500, ""), says("ok")]
    began = time.monotonic()
    client(fake, backoff_s=0.1).ask("a", 0)
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("status", [400, 401, 404, 302, 307])
def test_a_refusal_is_not_tried_again(fake: FakeServer, status: int) -> None:
    fake.replies = [send(status, "no such\nmodel", Location=f"{fake.url}/elsewhere")]
    with pytest.raises(ConfigError, match=rf"refuses \(HTTP {status}: no such model\); check corpus.rewriter.url"):
        client(fake).ask("a", 0)
    # Nor followed elsewhere.
    assert [headers["path"] for headers in fake.headers] == ["/v1/chat/completions"]


def test_nobody_there_is_an_error(fake: FakeServer) -> None:
    away = ChatServer(ServerConfig(url="http://127.0.0.1:9/v1", model="m", tries=2, backoff_s=0))
    with pytest.raises(DataError, match="gave no answer in 2 tries"):
        away.ask("a", 0)


# ---- the key


def test_the_key_goes_into_the_header_and_nowhere_else(
    fake: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    server = client(fake, key_variable="MY_KEY")
    said = [repr(server), repr(server.config), str(vars(server)), server.config.model_dump_json()]
    for replies in (
        [says("ok")],
        [send(401, f"wrong key: {KEY}")],
        [send(500, f"wrong key: Bearer {KEY}")],
        [send(302, "", Location=f"{fake.url}/x")],
        [late(0.6, says("too late"))],
        [send(200, "<html>")],
    ):
        fake.replies, fake.bodies = replies, []
        try:
            server.ask("a", 0)
        except PeftStudyError as error:
            chain: BaseException | None = error
            while chain:
                said += [str(chain), repr(chain)]
                chain = None if chain.__suppress_context__ else chain.__context__
    assert {headers["authorization"] for headers in fake.headers} == {f"Bearer {KEY}"}
    output = capfd.readouterr()
    assert KEY not in "\n".join([*said, caplog.text, output.out, output.err])
    assert "***" in "\n".join(said)


@pytest.mark.parametrize("value", [None, "", "  ", f"{KEY}\nX:y", f"{KEY} x", "schlüssel"])
def test_what_is_no_key_is_an_error_that_does_not_tell_it(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("MY_KEY", raising=False)
    else:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="the environment variable MY_KEY must hold an API key") as caught:
        client(fake, key_variable="MY_KEY").ask("a", 0)
    assert KEY not in str(caught.value)
    assert not fake.bodies


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "file:///etc/passwd", "https://me:secret@host/v1"])
def test_an_address_must_be_plain(url: str) -> None:
    with pytest.raises(ValidationError, match="url must begin with http"):
        ServerConfig(url=url, model="m")
