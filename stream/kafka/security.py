"""Who we are to Kafka, and how we know that it is Kafka: TLS and SASL, as settings and as a client's arguments.

It knows files, secrets and tokens; it refuses to know brokers. What is read from a file is read when a client is
opened, and a token each time one is wanted, in the event loop of the client that wants it: the consumer has its own.
The invariant: no secret is in a message, a log line or a representation of anything here, and nothing that a person's
own token function raises gets past us as anything but an error that a client can wait out.
"""

import asyncio
import importlib
import inspect
import logging
import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ebbtide.stream.errors import BrokerMisconfigured

log = logging.getLogger(__name__)

TOKEN_S = 10.0  # aiokafka waits for a token without end, and every other connection of that client with it
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class TokenUnavailable(KafkaConnectionError):  # type: ignore[misc]  # aiokafka publishes no types
    """No token came: the next connection asks again. A connection error, since aiokafka survives no other kind."""


class TlsSettings(BaseModel):
    """TLS to the brokers. Without `ca_file` the system's authorities are trusted; the host name is always checked.
    `cert_file` and `key_file` (PEM) are ours, for brokers that ask who we are."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enabled: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = Field(default=None, description="None: the key is in cert_file")
    key_password: SecretStr | None = None

    def problems(self) -> list[str]:
        """What does not fit together, by name."""
        given = [
            n for n in ("ca_file", "cert_file", "key_file", "key_password") if getattr(self, n) is not None
        ]
        wrong = []
        if given and not self.enabled:
            wrong.append(f"tls.{given[0]} is set, but tls.enabled is false: nothing would be encrypted")
        if self.cert_file is None:
            wrong += [
                f"tls.{n} needs tls.cert_file"
                for n in ("key_file", "key_password")
                if getattr(self, n) is not None
            ]
        return wrong

    def context(self) -> ssl.SSLContext:
        """Reads the files. Raises BrokerMisconfigured naming every setting whose file cannot be used."""
        wrong = [
            f"kafka.tls.{name}: {problem}"
            for name in ("ca_file", "cert_file", "key_file")
            if (file := getattr(self, name)) is not None and (problem := _unreadable(file))
        ]
        if wrong:
            raise BrokerMisconfigured("; ".join(wrong), hint="mount the file, or correct the setting")
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise BrokerMisconfigured(
                f"kafka.tls.ca_file: {self.ca_file} holds no certificate in PEM: {error.reason or error}"
            ) from error
        if self.cert_file is not None:
            # An empty password rather than none: OpenSSL would ask for it on the terminal.
            password = self.key_password.get_secret_value() if self.key_password else ""
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password)
            except ssl.SSLError as error:
                raise BrokerMisconfigured(
                    f"kafka.tls.cert_file {self.cert_file} and its key cannot be used: {error.reason or 'no PEM'}",
                    hint="tls.key_file must hold the certificate's key, and tls.key_password open it",
                ) from error
        return context


class SaslSettings(BaseModel):
    """Who we are. `token_callback` names a function `package.module:function` that returns a token or awaits one, in
    whatever event loop asks; `token_file` is read anew each time, as Kubernetes renews what it projects."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    mechanism: Mechanism | None = None
    username: str | None = None
    password: SecretStr | None = None
    token_callback: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    token_file: Path | None = None

    def problems(self) -> list[str]:
        """What does not fit together, by name."""
        plain = [n for n in ("username", "password") if getattr(self, n) is not None]
        token = [n for n in ("token_callback", "token_file") if getattr(self, n) is not None]
        if self.mechanism is None:
            return [f"sasl.{name} is set, but sasl.mechanism is not" for name in plain + token]
        if self.mechanism == "OAUTHBEARER":
            wrong = [f"sasl.{name} has no meaning with OAUTHBEARER" for name in plain]
            if len(token) != 1:
                wrong.append("OAUTHBEARER needs exactly one of sasl.token_callback and sasl.token_file")
            return wrong
        missing = [n for n in ("username", "password") if not _text(getattr(self, n))]
        return [f"{self.mechanism} needs sasl.{name}" for name in missing] + [
            f"sasl.{name} is for OAUTHBEARER, sasl.mechanism is {self.mechanism}" for name in token
        ]


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka publishes no types
    """What aiokafka asks for a token at each connection, in the event loop of whichever client connects."""

    def __init__(self, sasl: SaslSettings) -> None:
        if sasl.token_file is not None and (problem := _unreadable(sasl.token_file)):
            raise BrokerMisconfigured(
                f"kafka.sasl.token_file: {problem}", hint="mount it, or correct the setting"
            )
        self._file = sasl.token_file
        self._callback = None if sasl.token_callback is None else _function(sasl.token_callback)
        self._name = "kafka.sasl.token_file" if sasl.token_callback is None else sasl.token_callback

    async def token(self) -> str:
        """A fresh token. Raises TokenUnavailable, which tells nothing of what the function said: it may be secret."""
        try:
            async with asyncio.timeout(TOKEN_S):
                token = await self._ask()
        except TimeoutError:
            raise TokenUnavailable(f"{self._name} gave no token within {TOKEN_S:g} s") from None
        except Exception as error:  # noqa: BLE001  # somebody else's code, at our border: aiokafka's tasks would die of it
            reason = _words(error) if self._file else type(error).__name__
            raise TokenUnavailable(f"{self._name} gave no token: {reason}") from None
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise TokenUnavailable(f"{self._name} gave something that is no token ({type(token).__name__})")
        return token

    async def _ask(self) -> Any:
        if self._file is not None:
            return (await asyncio.to_thread(self._file.read_text)).strip()
        assert self._callback is not None
        if inspect.iscoroutinefunction(self._callback):
            return await self._callback()
        answer = await asyncio.to_thread(self._callback)  # it may ask a server, and block
        return await answer if inspect.isawaitable(answer) else answer


def security(tls: TlsSettings, sasl: SaslSettings) -> dict[str, Any]:
    """Keyword arguments for any aiokafka client. Reads the files; raises BrokerMisconfigured by setting."""
    protocol = ("SASL_" if sasl.mechanism else "") + ("SSL" if tls.enabled else "PLAINTEXT")
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if tls.enabled:
        arguments["ssl_context"] = tls.context()
    if sasl.mechanism is not None:
        logging.getLogger("aiokafka.conn").addFilter(_without_secrets)  # the same one again changes nothing
        if not tls.enabled:
            _warn_of_plaintext(sasl.mechanism)
        arguments["sasl_mechanism"] = sasl.mechanism
        if sasl.mechanism == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = Tokens(sasl)
        else:
            arguments |= {"sasl_plain_username": sasl.username, "sasl_plain_password": _text(sasl.password)}
    return arguments


def _without_secrets(record: logging.LogRecord) -> bool:
    """False for aiokafka's debug lines that print a whole SASL exchange, with whatever secret is in it."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


@cache
def _warn_of_plaintext(mechanism: str) -> None:
    """Once a process."""
    log.warning(
        "kafka.sasl without kafka.tls: whoever reads the network can take our place",
        extra={"mechanism": mechanism},
    )


def _function(path: str) -> Callable[[], Any]:
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs somebody else's code, which may raise whatever it likes
        raise BrokerMisconfigured(
            f"kafka.sasl.token_callback {path!r} cannot be imported: {_words(error)}",
            hint="package.module:function, installed where this process runs",
        ) from error
    if not callable(function):
        raise BrokerMisconfigured(f"kafka.sasl.token_callback {path!r} is not a function")
    found: Callable[[], Any] = function
    return found


def _unreadable(file: Path) -> str:
    """Why `file` cannot be read; empty when it can."""
    try:
        file.read_bytes()
    except OSError as error:
        return f"cannot read {file}: {error.strerror}"
    return ""


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _text(value: SecretStr | str | None) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value or ""
