"""What a refusal of Redis means for the caller: worth a retry, or something an operator must change.

    StoreUnavailable     away, loading, busy, full, a replica for now, a slot on the move; a TLS alert of a server that
                         has answered us before: a proxy without a backend says one, too
    StoreMisconfigured   password, rights, a certificate that we do not accept, another topology, not a Redis at all;
                         a TLS alert before the first answer: most likely it is we who are wrong

No text of it quotes a key, since keys hold customers.
"""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis import exceptions as refused

from ebbtide.featurestore.errors import StoreError, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.redis.url import SENTINEL_SETTINGS, SETTING, USER_SETTINGS

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
NOT_THE_MASTER = (refused.ReadOnlyError, refused.MasterDownError, refused.BusyLoadingError)
"""Said by a server that is the wrong one for now: a new connection may lead to the right one."""
CLUSTER_HINT = (
    f"it is a node of a Redis Cluster: let {SETTING} begin with redis+cluster:// (rediss+cluster://)"
)


class Refusals:
    """Explains the refusals of one Redis. `answered` turns true with its first answer and stays so: from then on the
    way to it is known to be right."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.answered = False

    def explain(self, error: Exception) -> StoreError:
        """What `error` means: a StoreUnavailable or a StoreMisconfigured."""
        return _explain(error, self.where, answered=self.answered)

    def most_telling(self, errors: Sequence[Exception]) -> StoreError:
        """Of several servers' refusals the one to report: what an operator must change before what time may heal."""
        explained = [self.explain(error) for error in errors]
        return next((error for error in explained if isinstance(error, StoreMisconfigured)), explained[-1])


def _explain(error: Exception, where: str, *, answered: bool) -> StoreError:
    said = f"Redis at {where}: {str(error) or 'no answer in time'}"
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OTHER_NAME:
            hint = (
                f"name the servers in {SETTING} as their certificates do; those that a Cluster announces, too"
            )
            return StoreMisconfigured(said, hint=hint)
        if isinstance(cause, ssl.SSLError):
            if answered and not isinstance(cause, ssl.SSLCertVerificationError):
                hint = "the TLS server, or a proxy in front of it, turned us away: it may be restarting"
                return StoreUnavailable(said, hint=hint)
            hint = (
                f"rediss:// in {SETTING} needs a TLS port and a trusted certificate, ?ssl_ca_certs=FILE;"
                " a server that asks for ours, ?ssl_certfile=FILE&ssl_keyfile=FILE"
            )
            return StoreMisconfigured(said, hint=hint)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, _DENIED):
        also = f" (or the Sentinels' own, {SENTINEL_SETTINGS})" if "Sentinels" in where else ""
        return StoreMisconfigured(said, hint=f"check {USER_SETTINGS}{also}, and the user's ACL")
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


async def close_all(*clients: Any) -> None:
    """Close clients of redis-py, all at once. A refusal means nothing here: nobody wants an answer any more.

    Over TLS a connection waits for the server's goodbye, and a server that hangs says none. That takes one timeout of
    its own, and must neither keep the others open nor take the place of the error for which they are closed.
    """

    async def close(client: Any) -> None:
        with suppress(refused.RedisError, OSError):
            await client.aclose()

    await asyncio.gather(*(close(client) for client in clients))
