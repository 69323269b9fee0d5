"""An endpoint against a server on this machine that speaks the protocol, and fails in all the ways that servers do."""

import email.utils
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tessera.errors import InputError, SettingError
from tessera.generate.provider import LONGEST_PAUSE, Endpoint, RefusedError, checked_url

ASKED = [{"role": "user", "content": "How are you? äöü"}]


class Server(http.server.ThreadingHTTPServer):
    """Answers what it was asked, after the failures that a test sets."""

    daemon_threads = True
    failures: list[Any]
    """Of each next request: a status, (status, headers, body), "cut", "half", "slow", or a body of status 200."""
    requests: list[tuple[str, dict[str, str], Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(("GET " + self.path, dict(self.headers), None))
        self._reply(200, {}, b"{}")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), asked))
        match self.server.failures.pop(0) if self.server.failures else None:
            case None:
                said = f"{asked['model']} heard {asked['messages'][-1]['content']}"
                content = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}]}
                self._reply(200, {}, json.dumps(content).encode())
            case int(status):
                self._reply(status, {}, b'{"error": {"message": "it is hot here"}}')
            case (status, headers, body):
                self._reply(status, headers, body)
            case "cut":
                self.connection.close()
            case "half":
                self._reply(200, {"Content-Length": "1000"}, b'{"choices": [')
            case "slow":
                time.sleep(1.0)
            case bytes(body):
                self._reply(200, {}, body)

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.failures, made.requests = [], []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def endpoint(server: Server, pauses: list[float]) -> Endpoint:
    return Endpoint(server.url, "small:1b", tries=3, sleep=pauses.append)


def ask(endpoint: Endpoint) -> str:
    return endpoint.answer(ASKED, max_tokens=7, temperature=0.5, seed=3)


def test_what_is_sent_and_what_comes_back(endpoint: Endpoint, server: Server, pauses: list[float]) -> None:
    assert ask(endpoint) == "small:1b heard How are you? äöü"
    ((path, headers, asked),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert asked == {
        "model": "small:1b",
        "messages": ASKED,
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "stream": False,
    }
    assert pauses == []


@pytest.mark.parametrize("failure", [500, 502, 503, 408, 429, "cut", "half"])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, server: Server, pauses: list[float], failure: Any) -> None:
    server.failures = [failure, failure]
    assert ask(endpoint).startswith("small:1b heard")
    assert len(server.requests) == 3
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize(
    ("failure", "said"),
    [(500, r"HTTP 500 .*: it is hot here, 3 times"), ("cut", "the connection was lost|cannot be reached")],
)
def test_after_all_tries_the_url_is_named(endpoint: Endpoint, server: Server, failure: Any, said: str) -> None:
    server.failures = [failure] * 3
    with pytest.raises(InputError, match=said) as error:
        ask(endpoint)
    assert str(error.value).startswith(f"{server.url}/chat/completions: ")


def test_the_server_says_how_long_to_wait(endpoint: Endpoint, server: Server, pauses: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    server.failures = [(429, {"Retry-After": "17"}, b""), (503, {"Retry-After": date}, b"")]
    ask(endpoint)
    assert pauses[0] == 17
    assert 50 < pauses[1] <= 100
    server.failures = [(429, {"Retry-After": "86400"}, b"")]
    with pytest.raises(InputError, match="asks to wait for 86400 seconds"):
        ask(endpoint)
    server.failures = [(429, {"Retry-After": "soon"}, b"")]
    ask(endpoint)
    assert pauses[2:] == [1.0]
    assert LONGEST_PAUSE < 86400


def test_silence_is_tried_again_and_then_named(server: Server, pauses: list[float]) -> None:
    endpoint = Endpoint(server.url, "m", seconds=0.1, tries=2, sleep=pauses.append)
    server.failures = ["slow", "slow"]
    with pytest.raises(InputError, match=r"no answer within 0.1 seconds, 2 times"):
        ask(endpoint)
    assert pauses == [1.0]


def test_nobody_there(pauses: list[float]) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", tries=2, sleep=pauses.append)
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/v1/chat/completions: cannot be reached \(.*\), 2 times"):
        ask(endpoint)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>\x1b[31mHello</html>", r"the reply is not JSON: <html> \[31mHello</html>"),
        (b"\xff\x00", "the reply is not JSON"),
        (b"[" * 100_000, "the reply is not JSON"),
        (b"{}", "not a chat completion: {}"),
        (b'{"choices": []}', "not a chat completion"),
        (b'{"choices": [{"message": {"content": 5}}]}', "not a chat completion"),
    ],
)
def test_a_reply_that_is_no_answer_is_shown(endpoint: Endpoint, server: Server, body: bytes, said: str) -> None:
    server.failures = [body]
    with pytest.raises(InputError, match=said) as error:
        ask(endpoint)
    assert str(error.value).startswith(server.url)
    assert len(str(error.value)) < 400
    assert len(server.requests) == 1


def test_an_answer_without_a_text_is_empty(endpoint: Endpoint, server: Server) -> None:
    server.failures = [b'{"choices": [{"message": {"role": "assistant", "content": null}}]}']
    assert ask(endpoint) == ""


@pytest.mark.parametrize(("status", "kind"), [(400, RefusedError), (422, RefusedError), (404, InputError)])
def test_what_does_not_pass_is_not_tried_again(
    endpoint: Endpoint, server: Server, status: int, kind: type[InputError]
) -> None:
    server.failures = [status]
    with pytest.raises(InputError, match=f"HTTP {status} .*it is hot here") as error:
        ask(endpoint)
    assert type(error.value) is kind
    assert len(server.requests) == 1


def test_the_key_goes_to_the_server_and_into_no_message(
    server: Server, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret\n")
    endpoint = Endpoint(server.url, "m", "SOME_KEY", tries=1, sleep=pauses.append)
    ask(endpoint)
    assert server.requests[0][1]["Authorization"] == "Bearer s3cret"
    for failure in (401, 500, "cut"):
        server.failures = [failure]
        with pytest.raises(InputError) as error:
            ask(endpoint)
        assert "s3cret" not in str(error.value)
    server.failures = [401]
    with pytest.raises(InputError, match=r"the key is that in \$SOME_KEY"):
        ask(endpoint)
    monkeypatch.setenv("SOME_KEY", "s3cret\nX-Other: 1")
    with pytest.raises(InputError) as error:
        Endpoint(server.url, "m", "SOME_KEY")
    assert "s3cret" not in str(error.value)
    with pytest.raises(SettingError, match="api_key_env = 'NO_SUCH_KEY'"):
        Endpoint(server.url, "m", "NO_SUCH_KEY")


def test_a_redirect_is_not_followed(endpoint: Endpoint, server: Server) -> None:
    server.failures = [(302, {"Location": f"{server.url}/elsewhere"}, b"")]
    with pytest.raises(InputError, match="HTTP 302"):
        ask(endpoint)
    assert len(server.requests) == 1


def test_no_proxy_stands_before_this_machine(
    endpoint: Endpoint, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    made = Endpoint(server.url, "m", tries=1)
    assert ask(made).startswith("m heard")


@pytest.mark.parametrize("url", ["http://host/v1", "http://host/v1/", "http://host/v1/chat/completions"])
def test_a_url_is_completed(url: str) -> None:
    assert checked_url(url) == "http://host/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    ["host:80/v1", "ftp://host", "http://", "http://host:port", "http://h/a b", "http://h/v1?key=1", "http://h\n"],
)
def test_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(SettingError, match="url = "):
        Endpoint(url, "m")


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingError, match="no password in it") as error:
        Endpoint("http://me:s3cret@host/v1", "m")
    assert "s3cret" not in str(error.value)
