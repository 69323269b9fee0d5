"""Who answers a conversation: one contract, whether the model is in this process or behind an address.

    answer(messages, max_tokens=..., temperature=..., seed=...) -> text

An `Endpoint` speaks the chat protocol that OpenAI began and most servers know (Ollama, vLLM, llama.cpp): a POST of
the messages to URL/chat/completions. What passes by itself is tried again, after twice as long each time or when the
server asks for it: a connection that fails, 408, 429 and 5xx. What does not is an error that names the URL.
"""

import email.utils
import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from tessera.errors import InputError, SettingError

Message = Mapping[str, Any]

PATH = "/chat/completions"
SECONDS = 300.0
TRIES = 5
LONGEST_PAUSE = 300.0
MOST_BYTES = 1 << 24  # of a reply
SHOWN = 200  # characters of what a server says
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
REFUSED = frozenset({400, 413, 422})


class RefusedError(InputError):
    """This one conversation is not answered, it is too long for instance; another may be."""


class Provider(Protocol):
    """Something that answers."""

    def answer(self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> str:
        """What the assistant says next, of at most `max_tokens`; a `RefusedError` where it does not take these."""
        ...


class Endpoint:
    """A model behind an address, for example `http://localhost:11434/v1`.

    `api_key_env` names the environment variable that holds the key, if one is needed: the key itself is in no setting
    and in no message. `seconds` is how long the server may be silent, `tries` how often one question is asked.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str | None = None,
        *,
        seconds: float = SECONDS,
        tries: int = TRIES,
        pause: float = 1.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = checked_url(url)
        if not model:
            raise SettingError("model", model, f"the name of a model at {self.url}")
        if tries < 1 or not seconds > 0:
            raise SettingError("tries, seconds", (tries, seconds), "both greater than 0")
        self.model, self.seconds, self.tries = model, seconds, tries
        self._pause, self._sleep = pause, sleep
        self._key_env, self._key = api_key_env, None if api_key_env is None else _key(api_key_env)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _is_this_machine(self.url):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def answer(self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int) -> str:
        """The server's answer; an `InputError` that names the URL if there is none after all tries."""
        content = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stream": False,
        }
        body = json.dumps(content).encode()
        for number in range(1, self.tries + 1):
            try:
                return self._read(self._post(body))
            except _PassingError as problem:
                if number == self.tries:
                    raise InputError(f"{self.url}: {problem}, {number} times") from None
                wait = self._pause * 2 ** (number - 1) if problem.wait is None else problem.wait
                if wait > LONGEST_PAUSE:
                    raise InputError(f"{self.url}: {problem}, and asks to wait for {wait:.0f} seconds") from None
                self._sleep(wait)
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.seconds) as reply:
                data: bytes = reply.read(MOST_BYTES + 1)
                expected = reply.headers.get("Content-Length", "")
        except urllib.error.HTTPError as error:
            with error:
                raise self._failure(error) from None
        except TimeoutError:
            raise _PassingError(f"no answer within {self.seconds:g} seconds") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _PassingError(f"no answer within {self.seconds:g} seconds") from None
            raise _PassingError(
                f"cannot be reached ({getattr(error.reason, 'strerror', None) or error.reason})"
            ) from None
        except (http.client.HTTPException, OSError) as error:
            raise _PassingError(f"the connection was lost ({type(error).__name__})") from None
        if len(data) > MOST_BYTES:
            raise InputError(f"{self.url}: the reply is longer than {MOST_BYTES >> 20} MiB")
        if expected.isdecimal() and len(data) < int(expected):  # `read` says so only when it is given no limit
            raise _PassingError("the connection was lost in the middle of a reply")
        return data

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means: try again, not this conversation, or not at all."""
        said = f"HTTP {error.code} {error.reason}{_said(error)}"
        if error.code in PASSING:
            return _PassingError(said, wait=_asked_wait(error.headers.get("Retry-After")))
        if error.code in REFUSED:
            return RefusedError(f"{self.url}: {said}")
        if error.code in (401, 403):
            hint = "no key was given" if self._key_env is None else f"the key is that in ${self._key_env}"
            return InputError(f"{self.url}: {said}; {hint}")
        return InputError(f"{self.url}: {said} (model {self.model!r})")

    def _read(self, data: bytes) -> str:
        try:
            reply = json.loads(data)
        except (ValueError, RecursionError):
            raise InputError(f"{self.url}: the reply is not JSON: {_short(data)}") from None
        match reply:
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                return text
            case {"choices": [{"message": {"content": None}}, *_]}:
                return ""
        raise InputError(f"{self.url}: the reply is not a chat completion: {_short(data)}")


class _PassingError(Exception):
    """A failure that may pass; `wait` is for how many seconds the server asked."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, and give the key to whoever it leads to: it is an error instead."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def checked_url(url: str) -> str:
    """The address that is asked: the base that was given, with PATH after it."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(each.isspace() or not each.isprintable() for each in url):
        raise SettingError("url", url, "an address such as http://localhost:11434/v1")
    if parts.username is not None or parts.password is not None:
        raise SettingError("url", f"{parts.scheme}://...@{parts.hostname}", "no password in it: name a key's variable")
    if parts.query or parts.fragment:
        raise SettingError("url", url, "no ? or # in it")
    base = url.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


def _key(variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SettingError("api_key_env", variable, "the name of an environment variable that holds a key")
    if not (value.isascii() and value.isprintable()):  # http.client would show it in its complaint
        raise InputError(f"${variable} holds characters that no key has")
    return value


def _is_this_machine(url: str) -> bool:
    """A proxy could not reach it."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _asked_wait(value: str | None) -> float | None:
    """The seconds of a Retry-After, which is a number or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says of its error, as most do: {"error": {"message": ...}} or {"error": ...}."""
    try:
        data = error.read(MOST_BYTES)
    except (OSError, http.client.HTTPException):
        return ""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return f": {_short(data)}" if data.strip() else ""
    match content:
        case {"error": {"message": str(text)}} | {"error": str(text)}:
            return f": {_short(text.encode())}"
    return f": {_short(data)}"


def _short(data: bytes) -> str:
    """The beginning of what came, in one line that a terminal can be given."""
    text = " ".join(
        "".join(c if c.isprintable() else " " for c in data[: 4 * SHOWN].decode("utf-8", "replace")).split()
    )
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
