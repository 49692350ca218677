"""What is known of one customer, in words: the record, the features and the model's present answer.

    GET /v1/customers/{id}    ?as_of=RFC 3339, ms or `now`; without it, as of the last that is known

It reads through the same store and the same model as the data path and changes nothing. The invariant: no time before
what is known is answered for, since the record does not say what it was then.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ebbtide.featurestore.events.contract import TIME_MS_MAX, USER_ID_CHARS_MAX
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.times.timestamps import instant, iso_ms
from ebbtide.stream.clock import Clock
from ebbtide.stream.decision.episodes import CLOSED
from ebbtide.stream.kafka.topics import partition_for

Ask = Callable[
    [Rows, NDArray[np.int64]], Awaitable[tuple[float, NDArray[np.float32], NDArray[np.float32], int]]
]
"""One row and its time to (p, features, contributions, version), computed where it does not stop the event loop."""


class Customers:
    """A customer's view, and its route."""

    def __init__(self, layout: Layout, store: Store, ask: Ask, clock: Clock) -> None:
        self._layout, self._store, self._ask, self._clock = layout, store, ask, clock
        self._folder, self._features = Folder(layout), features(layout.spec)
        # The model's thread takes calls in order: of all who ask here, one is ahead of the next dispatch.
        self._asking = asyncio.Lock()

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.get("/v1/customers/{id}", self._customer)]

    async def _customer(self, request: web.Request) -> web.Response:
        customer = request.match_info["id"]
        if not 1 <= len(customer) <= USER_ID_CHARS_MAX or not is_text(customer):
            raise web.HTTPBadRequest(
                reason=f"a customer id has 1 to {USER_ID_CHARS_MAX} characters, as UTF-8, percent-encoded"
            )
        found = dict(await self._store.find(customer))
        if not found:
            raise web.HTTPNotFound(reason="nothing is known of this customer")
        home = partition_for(customer.encode(), self._store.partitions)
        partition = home if home in found else min(found)
        row = found[partition]
        rows = np.array([row], self._layout.dtype)
        as_of = self._as_of(request.query.get("as_of"), int(row["row_watermark"]))
        async with self._asking:
            p, values, contributions, version = await self._ask(rows, np.array([as_of], np.int64))
        eligible = bool(self._folder.eligible(rows, as_of)[0])
        return web.json_response(
            {
                "customer": customer,
                "partition": partition,
                # Of a producer with another partitioner: the same customer, in parts that know nothing of each other.
                "other_records": [
                    {"partition": other, "last_seen": _when(int(found[other]["last_seen"]))}
                    for other in sorted(found)
                    if other != partition
                ],
                "as_of": instant(as_of).isoformat(),
                "state": describe(row, self._layout),
                "eligible": eligible,
                "probability": _number(p) if eligible else None,
                "model_version": version,
                "last_score": {"probability": _number(row["score"][0]), "as_of": _when(int(row["scored_at"]))}
                if row["scored_at"]
                else None,
                "features": {
                    f.name: {
                        "value": _number(v),
                        "unit": f.unit,
                        "contribution": _number(c),
                        "words": f.describe(float(v)),
                    }
                    for f, v, c in zip(self._features, values, contributions, strict=True)
                },
            }
        )

    def _as_of(self, text: str | None, known_ms: int) -> int:
        if text is None:
            return known_ms
        if text == "now":
            return max(self._clock.now_ms(), known_ms)
        try:
            ms = int(text) if text.isdecimal() else iso_ms(text)
        except (ValueError, OverflowError):
            raise web.HTTPBadRequest(reason="as_of is RFC 3339, epoch milliseconds or `now`") from None
        if not known_ms <= ms <= TIME_MS_MAX:
            raise web.HTTPBadRequest(
                reason=f"as_of lies before what is known ({known_ms} ms), or after the year 9999"
            )
        return ms


def describe(row: np.void, layout: Layout) -> dict[str, Any]:
    """A record in words: times, counts, episode. For people and for the customer endpoint."""
    spec = layout.spec
    return {
        "first_seen": _when(int(row["first_seen"])),
        "last_seen": _when(int(row["last_seen"])),
        "left_explicitly_at": _when(int(row["terminated_at"])),
        "activities": int(row["activity_count"]),
        "late_events": int(row["late_count"]),
        "counts": {kind.noun: int(n) for kind, n in zip(spec.kinds, row["kind_count"], strict=True)},
        "episode": episode_of(row, 0),
    }


def episode_of(row: np.void, target: int) -> dict[str, Any]:
    """The episode of one target, by its index."""
    return {
        "state": "closed" if row["episode_state"][target] == CLOSED else "open",
        "opened_at": _when(int(row["episode_opened_at"][target])),
        "cooldown_until": _when(int(row["cooldown_until"][target])),
        "sequence": int(row["sequence"][target]),
    }


def _when(ms: int) -> str | None:
    # A cooldown may end after the last time there is.
    return instant(min(ms, TIME_MS_MAX)).isoformat() if ms else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def is_text(text: str) -> bool:
    """It can be written as UTF-8; bytes that cannot be read as it arrive as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
