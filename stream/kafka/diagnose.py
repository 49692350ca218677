"""Why no broker will have us: knock at each one, and say what it said.

aiokafka tells the log why a connection failed, and its caller only that none succeeded, whether the broker is away for
a moment or will refuse our password for ever. So when a client could not be opened, we open plain connections of our
own: to each address that was configured, and to each address that a broker calls its own. It knows what a closed door
looks like from outside; it refuses to go in. Invariant: it is asked after a failure only, and waits a few seconds.
"""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import BrokerResponseError, KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from ebbtide.stream.errors import BrokerMisconfigured, BrokerUnavailable, StreamError
from ebbtide.stream.kafka.errors import PERMANENT, advice, causes, failure
from ebbtide.stream.kafka.security import Tokens, TokenUnavailable
from ebbtide.stream.kafka.settings import URL_SETTING, KafkaSettings, ms

KNOCK_S = 5.0
NO_ANSWER = "it would not say which brokers there are"
AGAIN_S = 0.5  # a broker that is just going down hangs up, too: what it says counts when it is said twice
START = f"start one with `ebbtide stack up`, or set {URL_SETTING} to one that runs"

Address = tuple[str, int]
Refusal = tuple[str, str]
"""What a broker said that it will say again, and what to change."""
Answer = Refusal | str | list[Address]
"""Or what went wrong that may pass; or, let in, the addresses by which the brokers call themselves."""


async def unreachable(settings: KafkaSettings, error: BaseException) -> StreamError:
    """Why a client could not be opened, to be raised from `error`: BrokerMisconfigured when a broker says that it will
    not have us, BrokerUnavailable when none says anything."""
    problem = failure(settings, "our connection", error)
    if isinstance(problem, BrokerMisconfigured):
        return problem
    if settings.sasl.mechanism == "OAUTHBEARER":
        try:
            await Tokens(settings.sasl).token()
        except TokenUnavailable as missing:
            return BrokerUnavailable(str(missing.args[0]), hint="it is asked again at the next connection")
    hosts = [
        (name, int(port)) for name, _, port in (host.rpartition(":") for host in settings.url.split(","))
    ]
    answers = await _knock_at(settings, hosts)
    # A broker that let us in names all of them, each by the address that a client will use.
    inside = {address for answer in answers.values() if isinstance(answer, list) for address in answer}
    answers |= await _knock_at(settings, sorted(inside - set(hosts)))
    refused = [address for address, answer in answers.items() if isinstance(answer, tuple)]
    if refused:
        await asyncio.sleep(AGAIN_S)
        for answer in (await _knock_at(settings, refused)).values():
            if isinstance(answer, tuple):
                return BrokerMisconfigured(answer[0], hint=answer[1])
    said = "; ".join(answer for answer in answers.values() if isinstance(answer, str))
    return BrokerUnavailable(f"no Kafka broker answers at {settings.url}: {said or error}", hint=START)


async def _knock_at(settings: KafkaSettings, addresses: Sequence[Address]) -> dict[Address, Answer]:
    arguments = settings.client()
    answers = await asyncio.gather(*(_knock(settings, arguments, *address) for address in addresses))
    return dict(zip(addresses, answers, strict=True))


async def _knock(settings: KafkaSettings, arguments: dict[str, Any], host: str, port: int) -> Answer:
    where = f"Kafka at {host}:{port}"
    own = {k: v for k, v in arguments.items() if k not in ("bootstrap_servers", "retry_backoff_ms")}
    own["request_timeout_ms"] = min(own["request_timeout_ms"], ms(KNOCK_S))
    connection: AIOKafkaConnection | None = None
    try:
        async with asyncio.timeout(KNOCK_S):
            connection = await create_conn(host, port, **own)
            metadata = await connection.send(MetadataRequest([]))
            if metadata.brokers:
                return [(broker[1], broker[2]) for broker in metadata.brokers]
            raise KafkaConnectionError(NO_ANSWER)
    except (KafkaError, OSError, TimeoutError, ValueError) as error:
        for cause in causes(error):
            if isinstance(cause, (*PERMANENT, ssl.SSLCertVerificationError)):
                return f"{where} will not do: {_words(cause)}", advice(settings, cause)
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
                return f"{where} refuses our TLS: {_words(cause)}", advice(settings, cause)
        return await _closed_door(settings, host, port, connection is not None, error)
    finally:
        if connection is not None:
            connection.close()


async def _closed_door(
    settings: KafkaSettings, host: str, port: int, authenticated: bool, error: BaseException
) -> Refusal | str:
    """The broker hung up, or said nothing that we understand: which of the things that look like this is it?"""
    where, wait_s = f"Kafka at {host}:{port}", min(KNOCK_S, settings.request_timeout_s)
    if isinstance(error, ConnectionRefusedError):
        return f"{where}: nobody listens there"
    hung_up = any(
        isinstance(cause, KafkaConnectionError | ConnectionError | EOFError) for cause in causes(error)
    )
    if not settings.tls.enabled and await _speaks_tls(host, port, wait_s):
        return f"{where} speaks TLS, and we do not", "set kafka.tls.enabled, and kafka.tls.ca_file"
    if settings.tls.enabled and not authenticated and not await _speaks_tls(host, port, wait_s):
        if await _listens(host, port, wait_s):
            return (
                f"{where} does not speak TLS, and we do",
                "unset kafka.tls.enabled, or use the port of its TLS listener",
            )
    elif authenticated and hung_up and settings.sasl.mechanism is None:
        return f"{where} hangs up on a client that does not log in", "set kafka.sasl.mechanism and who we are"
    elif authenticated and hung_up and settings.sasl.mechanism == "OAUTHBEARER":
        return f"{where} does not accept our token", (
            "check the token that kafka.sasl.token_callback or kafka.sasl.token_file gives: audience, scope, expiry"
        )
    return f"{where}: {_words(error)}"


async def _speaks_tls(host: str, port: int, wait_s: float) -> bool:
    """Whoever's certificate it shows: nothing is sent over this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await _listens(host, port, wait_s, context)


async def _listens(host: str, port: int, wait_s: float, context: ssl.SSLContext | None = None) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(wait_s):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
            return True
    return False


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate fails: {error.verify_message}"
    if isinstance(error, BrokerResponseError):
        return next((text for text in error.args if isinstance(text, str)), error.description)
    return str(error) or type(error).__name__


def require_metadata(client: AIOKafkaClient) -> None:
    """Raises KafkaConnectionError when a client that aiokafka calls started was in fact shown the door: with a token
    that it does not accept, Kafka answers the next question with nothing, and aiokafka takes that for an answer."""
    if not client.cluster.brokers():
        raise KafkaConnectionError(NO_ANSWER)
