"""What a refusal of Redis means for the caller: worth a retry, or something an operator must change.

StoreUnavailable: away, loading, busy, full, a replica for now, a slot on the move. StoreMisconfigured: password,
rights, TLS, another topology, not a Redis at all; and on closing, nothing. This module knows redis-py's exceptions and
refuses to know who asked what; no text of it quotes a key, since keys hold customers.
"""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis import exceptions as refused

from ebbtide.featurestore.errors import StoreError, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.redis.url import SETTING

_DENIED = (
    refused.AuthenticationError,
    refused.AuthorizationError,
    refused.AuthenticationWrongNumberOfArgsError,
    refused.NoPermissionError,
)
_RETRY = (
    refused.ConnectionError,
    refused.TimeoutError,
    refused.ReadOnlyError,
    refused.OutOfMemoryError,
    refused.ClusterDownError,
    refused.MasterDownError,
    refused.TryAgainError,
    OSError,
)
_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_RETRY_WORDS = ("BUSY", "MISCONF", "NOREPLICAS", "NOSCRIPT")  # errors that have no class of their own
CLUSTER_HINT = (
    f"it is a node of a Redis Cluster: let {SETTING} begin with redis+cluster:// (rediss+cluster://)"
)


def explain(error: Exception, where: str) -> StoreError:
    """What `error`, met while asking Redis at `where`, means: a StoreUnavailable or a StoreMisconfigured."""
    said = f"Redis at {where}: {str(error) or 'no answer in time'}"
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OTHER_NAME:
            hint = (
                f"name the servers in {SETTING} as their certificates do; those that a Cluster announces, too"
            )
            return StoreMisconfigured(said, hint=hint)
        if isinstance(cause, ssl.SSLError):
            hint = (
                f"rediss:// in {SETTING} needs a TLS port and a trusted certificate, ?ssl_ca_certs=FILE;"
                " a server that asks for ours, ?ssl_certfile=FILE&ssl_keyfile=FILE"
            )
            return StoreMisconfigured(said, hint=hint)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, _DENIED):
        return StoreMisconfigured(said, hint=f"check user and password in {SETTING}, and the user's ACL")
    if isinstance(error, refused.OutOfMemoryError):
        return StoreUnavailable(said, hint="raise the server's maxmemory; nothing was lost")
    if isinstance(error, refused.AskError):  # and MOVED, its subclass: only where nobody follows it
        return StoreMisconfigured(f"Redis at {where} does not hold all slots", hint=CLUSTER_HINT)
    if isinstance(error, _RETRY) or str(error).startswith(_RETRY_WORDS):
        return StoreUnavailable(
            said, hint=f"is it running, and does {SETTING} name it, or for rediss:// its TLS port?"
        )
    if "cluster support disabled" in str(error):
        return StoreMisconfigured(
            said, hint=f"it is no Cluster: let {SETTING} begin with redis:// (rediss://)"
        )
    return StoreMisconfigured(said, hint=f"check that {SETTING} names a Redis of our own, 7.0 or later")


def most_telling(errors: Sequence[Exception], where: str) -> StoreError:
    """Of several servers' refusals the one to report: what an operator must change before what time may heal."""
    explained = [explain(error, where) for error in errors]
    return next((error for error in explained if isinstance(error, StoreMisconfigured)), explained[-1])


async def close_all(*clients: Any) -> None:
    """Close clients of redis-py, all at once. A refusal means nothing here: nobody wants an answer any more.

    Over TLS a connection waits for the server's goodbye, and a server that hangs says none. That takes one timeout of
    its own, and must neither keep the others open nor take the place of the error for which they are closed.
    """

    async def close(client: Any) -> None:
        with suppress(refused.RedisError, OSError):
            await client.aclose()

    await asyncio.gather(*(close(client) for client in clients))
