"""Answers of servers that were asked together: one that is silent while others answer is waited for no longer."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ebbtide.featurestore.errors import StoreUnavailable

TURN_WAIT_S = 0.25
"""How long a server may say nothing after others have answered, before its partitions leave the turn."""


async def answers(asked: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """What was asked of one or several servers, all at once: an answer each, or the
    exception why there is none, in order.

    A server that is silent for TURN_WAIT_S after another one has answered is waited for no longer: what was asked of it
    may or may not have happened. One that is silent while nobody answers has its own timeout.
    """
    pending = {future for future in asked if not future.done()}
    patience_s: float | None = None
    while pending:
        done, pending = await asyncio.wait(pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        patience_s = TURN_WAIT_S
    for future in pending:
        future.cancel()
    silent = StoreUnavailable("no answer while others answered")
    return [silent if future in pending else _outcome(future) for future in asked]


def _outcome(future: asyncio.Future[Any]) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error
