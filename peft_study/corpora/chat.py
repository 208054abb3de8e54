"""A language model behind a server that speaks OpenAI's `/v1/chat/completions`, such as vLLM or llama.cpp.

Python's library alone. The key comes from an environment variable and goes into one header: it is in no repr, message
or log, and a redirection, which would take it elsewhere, is not followed.
"""

import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from peft_study.errors import ConfigError, DataError

MAX_BYTES = 4 << 20
"""Longer answers of a server are not read to their end, and so are no JSON."""


class ServerConfig(BaseModel):
    """Where a model is asked, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = "http://localhost:8000/v1"
    """What comes before `/chat/completions`."""
    model: str
    """Name of the model, as the server knows it."""
    key_variable: str = ""
    """Name of the environment variable that holds the API key; empty for a server that wants none."""
    temperature: float = Field(default=1.0, ge=0)
    """0 makes every try the same."""
    max_tokens: int = Field(default=512, ge=1)
    """Tokens of an answer; one that needs more counts as empty."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    tries: int = Field(default=4, ge=1)
    """Times to ask before giving up, where the server is busy, slow or broken."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds before the second try; each further wait is twice as long."""

    @property
    def label(self) -> str:
        """Return what answers are kept by: another limit or temperature gives other answers."""
        return f"{self.model}, {self.max_tokens} tokens, temperature {self.temperature:g}"

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        # A password in it would be in every message.
        if not url.startswith(("http://", "https://")) or "@" in url:
            raise ConfigError("url must begin with http:// or https:// and hold no user; name a key_variable instead")
        return url.rstrip("/")


class RewriterConfig(ServerConfig):
    """The model that writes mistakes, behind a server or here."""

    local: bool = False
    """Whether `model` is a folder or Hub name of a model that is loaded here; else the server at `url` has it."""
    answers: str
    """File of JSON lines that keeps all answers, so that trials with the same mistakes ask once."""
    threads: int = Field(default=8, ge=1)
    """Requests to the server at once."""


class ServerBusyError(Exception):
    """What another try may mend."""


class ChatServer:
    """Asks a model, one answer at a time; threads can share it."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._opener = urllib.request.build_opener(_NoRedirection())

    def ask(self, prompt: str, seed: int) -> str:
        """Return the answer to a prompt, empty if it was cut off at `max_tokens`.

        ConfigError where the server refuses (key, model, address); DataError where no try gave an answer.
        """
        config = self.config
        trouble = ""
        for i in range(config.tries):
            if i:
                time.sleep(config.backoff_s * 2 ** (i - 1))
            try:
                return _content(self._post(prompt, seed))
            except ServerBusyError as error:
                trouble = str(error)
        raise DataError(f"{config.url} gave no answer in {config.tries} tries ({trouble}); see to it, then run again")

    def _post(self, prompt: str, seed: int) -> bytes:
        config = self.config
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "seed": seed % 2**31,
        }
        headers, key = {"Content-Type": "application/json"}, _key(config.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{config.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=config.timeout_s) as response:
                return _read(response, time.monotonic() + config.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(2000).decode(errors="replace").split())
            said = f"HTTP {error.code}: {(said.replace(key, '***') if key else said)[:200]}"
            if error.code in (408, 425, 429) or error.code >= 500:
                raise ServerBusyError(said) from None
            raise ConfigError(
                f"{config.url} refuses ({said}); check corpus.rewriter.url, .model and .key_variable"
            ) from None
        except (OSError, HTTPException) as error:
            # Also a timeout, a connection refused or lost, an address without a host.
            raise ServerBusyError(f"{type(error).__name__}: {error}") from None


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any) -> None:
        return None


def _key(variable: str) -> str:
    """Return the key; the message of the ConfigError never holds what is in the variable."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the environment variable {variable} must hold an API key, but is unset or holds none; set it"
        )
    return key


def _read(response: Any, deadline: float) -> bytes:
    """Return the body; the timeout of a socket is for each piece, so a server that drips needs a limit for all."""
    parts, size = [], 0
    while size < MAX_BYTES and (part := response.read1(1 << 16)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise ServerBusyError("its answer was not whole in time")
    return b"".join(parts)


def _content(body: bytes) -> str:
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"]["content"]
        ended = choice.get("finish_reason") != "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ServerBusyError(f"its answer is no chat completion: {body[:60]!r}") from None
    return content if ended and isinstance(content, str) else ""
