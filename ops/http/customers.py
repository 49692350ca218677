"""What is known of one customer, and who is at risk: the routes of `/v1`.

    GET /v1/customers/{id}    ?as_of=RFC 3339, ms or `now`; without it, as of the last that is known.
                              Of composite customers: ann%2Fmath, or ann, which lists who begins with it
    GET /v1/at-risk           ?limit=50&min_p=0&sort=p|value&target=; of several targets by default the first

The answers are those of `ops/asking/`; here they are asked for, within bounds.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from aiohttp import web

from ebbtide.featurestore.events.contract import TIME_MS_MAX, USER_ID_CHARS_MAX
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.times.timestamps import iso_ms
from ebbtide.ops.asking.at_risk import LIMIT, LIMIT_MAX, at_risk
from ebbtide.ops.asking.customer import Ask, find, of_first, view
from ebbtide.stream.clock import Clock
from ebbtide.stream.decision.holdout import NOBODY, Holdout


class Customers:
    """The views, and their routes. floors: by target the p from which on the version in service lists customers."""

    def __init__(
        self,
        layout: Layout,
        store: Store,
        ask: Ask,
        clock: Clock,
        holdout: Holdout = NOBODY,
        floors: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        self._layout, self._store, self._ask, self._clock = layout, store, ask, clock
        self._holdout, self._floors = holdout, floors
        # The model's thread takes calls in order: of all who ask here, one is ahead of the next dispatch. And of all
        # who want a list, one reads records.
        self._asking, self._listing = asyncio.Lock(), asyncio.Lock()

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.get("/v1/customers/{id}", self._customer), web.get("/v1/at-risk", self._at_risk)]

    async def _customer(self, request: web.Request) -> web.Response:
        customer = request.match_info["id"]
        if not 1 <= len(customer) <= USER_ID_CHARS_MAX or not is_text(customer):
            raise web.HTTPBadRequest(
                reason=f"a customer id has 1 to {USER_ID_CHARS_MAX} characters, as UTF-8, percent-encoded"
            )
        try:
            if self._layout.spec.names_first(customer):
                return await self._of_first(customer)
        except ValueError as error:
            raise web.HTTPBadRequest(reason=str(error)) from None
        found = await find(self._store, self._layout.spec, customer)
        if found is None:
            raise web.HTTPNotFound(reason="nothing is known of this customer")
        as_of = self._as_of(request.query.get("as_of"), int(found.row["row_watermark"]))
        async with self._asking:
            return web.json_response(await view(customer, found, self._layout, self._ask, as_of))

    async def _of_first(self, first: str) -> web.Response:
        names = await of_first(self._store, first)
        if not names:
            raise web.HTTPNotFound(reason="nothing is known of this customer")
        return web.json_response({"first_part": first, "customers": names})

    async def _at_risk(self, request: web.Request) -> web.Response:
        asked = request.query
        try:
            limit, p_min = int(asked.get("limit", LIMIT)), float(asked.get("min_p", 0.0))
        except ValueError:
            raise web.HTTPBadRequest(reason="limit and min_p are numbers") from None
        if not 1 <= limit <= LIMIT_MAX or not 0.0 <= p_min <= 1.0:
            raise web.HTTPBadRequest(reason=f"limit is 1 to {LIMIT_MAX}, min_p is 0 to 1")
        order: Literal["p", "value"]
        match asked.get("sort", "p"):
            case "p":
                order = "p"
            case "value":
                order = "value"
            case _:
                raise web.HTTPBadRequest(reason="sort is p or value")
        targets = self._layout.spec.target_names
        if (target := asked.get("target", targets[0])) not in targets:  # what was sent is not sent back
            raise web.HTTPBadRequest(reason=f"target is one of {', '.join(targets)}")
        try:
            async with self._listing:
                found = await at_risk(
                    self._store,
                    self._layout,
                    limit=limit,
                    p_min=p_min,
                    order=order,
                    target=target,
                    floors=self._floors(),
                    holdout=self._holdout,
                )
                return web.json_response(found)
        except ValueError as error:  # the spec has no value
            raise web.HTTPBadRequest(reason=str(error)) from None

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


def is_text(text: str) -> bool:
    """It can be written as UTF-8; bytes that cannot be read as it arrive as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
