"""The loop between those who want scores and the one scorer they share; too dumb to be wrong.

It is *work-conserving*: as soon as the scorer is free and a row waits, it goes, so an idle service answers at once and
a busy one batches by itself, because rows gather while the last dispatch is on its way. (`linger` makes an idle scorer
wait, for a GPU whose fixed cost rewards it; 0 by default.) How many go is decided in `stream/scoring/dispatch.py`.

    turn ──score──▶ [request · request · …] ──▶ dispatch ──▶ scoring thread ──▶ answers by request
         ──explain─────────────────────────────────────────▶ explaining thread

First come, first served: a request is a turn's, and turns are fair between partitions. A request is scored by the
version that served when it came, all of it; so a dispatch holds requests of one version.

A row that makes the model fail does not fail its company: `stream/scoring/guard.py` finds it, in a bounded number of
calls, and only its own score is missing. What such a dispatch took says nothing of its size, so nothing is learned
from it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.clock import Clock
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.scoring.dispatch import CostModel, Dispatch, Wait, Waiting, decide
from ebbtide.stream.scoring.executor import OwnThread
from ebbtide.stream.scoring.guard import Guarded
from ebbtide.stream.scoring.model import Scored, Serving
from ebbtide.stream.telemetry import Dispatched, Telemetry

VERSIONS_KEPT = 2
"""The one in service and the one before it, whose turns may still be under way."""


class _Scorer:
    """A version with what is known of it: rows that it could score, and what each padded size costs."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.guarded = Guarded(serving.model)
        self.costs = CostModel(serving.model.sizes)


@dataclass(slots=True, eq=False)
class _Request:
    scorer: _Scorer
    rows: Rows
    as_of: NDArray[np.int64]
    events: int
    deadline_s: float
    queued_s: float
    p: NDArray[np.float32]
    done: asyncio.Future[Scored]
    taken: int = 0
    left: int = 0


class Batcher:
    """The one scorer that all turns share. `run` is its task; `score` and `explain` may be called by many.

    current: the version in service, asked once a request. deadline_s: how long after the oldest event's Kafka timestamp
    its score should be there; it decides sizes, nothing is ever dropped for it. A dispatch for which the model fails
    altogether fails every request that had rows in it.
    """

    def __init__(
        self,
        current: Callable[[], Serving],
        clock: Clock,
        telemetry: Telemetry,
        *,
        deadline_s: float,
        linger_s: float,
    ) -> None:
        self._current, self._clock, self._telemetry = current, clock, telemetry
        self._deadline_s, self._linger_s = deadline_s, linger_s
        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._thread = OwnThread("scorer")
        # Apart, so that no dispatch waits for an explanation.
        self._explainer = OwnThread("explainer")
        self._scorers: list[_Scorer] = []
        self._called_s: float | None = None
        self._explaining_s: dict[object, float] = {}

    @property
    def current(self) -> Serving:
        """The version in service."""
        return self._current()

    @property
    def call_age_s(self) -> float:
        """Seconds since the oldest call of the model under way was made, 0 when there is none: a hung model shows
        here."""
        began_s = [*self._explaining_s.values(), *(() if self._called_s is None else (self._called_s,))]
        return self._clock.monotonic_s() - min(began_s) if began_s else 0.0

    async def score(self, rows: Rows, as_of: NDArray[np.int64], *, events: int, oldest_ms: int) -> Scored:
        """Score n rows as of int64[n] ms, all by the version that serves now.

        `events`: how many events brought them; `oldest_ms`: the oldest one's Kafka timestamp. Raises ScorerUnavailable
        when the model fails for more than a few rows.
        """
        n, scorer = len(rows), self._scorer(self._current())
        if n == 0:  # a column a target all the same: who was not scored is decided about, too
            targets = len(scorer.serving.policy.targets)
            return Scored(np.empty(0 if targets == 1 else (0, targets), np.float32), scorer.serving)
        now_s = self._clock.monotonic_s()
        age_s = max(self._clock.now_ms() - oldest_ms, 0) / 1000
        request = _Request(
            scorer, rows, as_of, events, now_s - age_s + self._deadline_s, now_s, np.empty(n, np.float32),
            asyncio.get_running_loop().create_future(), left=n,
        )  # fmt: skip
        self._waiting.append(request)
        self._arrived.set()
        try:
            return await request.done
        finally:
            if request in self._waiting:  # cancelled: the worker ends
                self._waiting.remove(request)

    async def explain(self, rows: Rows, as_of: NDArray[np.int64], serving: Serving) -> Explained:
        """Why, of the few rows that became alerts, by the version that scored them. NaN for a row that it cannot
        explain. Raises ScorerUnavailable when it cannot explain any. No dispatch waits for it."""
        call = object()
        self._explaining_s[call] = self._clock.monotonic_s()
        try:
            found = await self._explainer.run(self._scorer(serving).guarded.explain, rows, as_of)
        finally:
            del self._explaining_s[call]
        failed = np.isnan(found.logit)
        inexact = ~np.all([each.holds for each in (found, *found.further)], axis=0) & ~failed
        self._telemetry.explained(len(rows), int(inexact.sum()), int(failed.sum()))
        return found

    async def run(self) -> None:
        """Serve for ever. Cancel it to stop; what waits is then never answered."""
        while True:
            self._arrived.clear()
            now_s = self._clock.monotonic_s()
            self._telemetry.queued(sum(r.left for r in self._waiting))
            if not self._waiting:
                await self._arrived.wait()
                continue
            scorer, waiting = self._alike()
            match decide(waiting, now_s, scorer.costs, self._linger_s):
                case Dispatch() as dispatch:
                    await self._dispatch(dispatch, scorer, now_s)
                case Wait(seconds):
                    try:
                        async with asyncio.timeout(seconds):
                            await self._arrived.wait()
                    except TimeoutError:
                        continue

    def _alike(self) -> tuple[_Scorer, Waiting]:
        """The oldest request's version, and what waits for it before anything that waits for another."""
        oldest = self._waiting[0]
        alike = list(takewhile(lambda r: r.scorer is oldest.scorer, self._waiting))
        rows = sum(len(r.rows) - r.taken for r in alike)
        return oldest.scorer, Waiting(rows, min(r.deadline_s for r in alike), oldest.queued_s)

    async def _dispatch(self, dispatch: Dispatch, scorer: _Scorer, now_s: float) -> None:
        parts = self._take(dispatch.rows)
        one = len(parts) == 1
        rows = parts[0][0].rows[parts[0][1]] if one else np.concatenate([r.rows[s] for r, s in parts])
        as_of = parts[0][0].as_of[parts[0][1]] if one else np.concatenate([r.as_of[s] for r, s in parts])
        self._called_s = self._clock.monotonic_s()
        try:
            found = await self._thread.run(scorer.guarded.score, rows, as_of)
            actual_s = self._clock.monotonic_s() - self._called_s
        except ScorerUnavailable as error:
            for request, _ in parts:
                if request in self._waiting:
                    self._waiting.remove(request)
                if not request.done.done():
                    # One each: an exception that several tasks raise collects the tracebacks of all.
                    request.done.set_exception(ScorerUnavailable(str(error)))
            return
        finally:
            self._called_s = None
        self._telemetry.dispatched(
            Dispatched(
                dispatch.reason, scorer.serving.version, len(rows), sum(r.events for r, s in parts if s.start == 0),
                dispatch.size, now_s - min(r.queued_s for r, _ in parts), scorer.costs.seconds(dispatch.size), actual_s,
            )
        )  # fmt: skip
        if found.calls == 1:
            scorer.costs.learn(dispatch.size, actual_s)
        start = 0
        for request, part in parts:
            n = part.stop - part.start
            if found.answer.ndim > request.p.ndim:  # of several targets; until now nobody knew
                request.p = np.empty((len(request.p), found.answer.shape[1]), np.float32)
            request.p[part] = found.answer[start : start + n]
            start += n
            request.left -= n
            if request.left == 0 and not request.done.done():
                request.done.set_result(Scored(request.p, scorer.serving))

    def _scorer(self, serving: Serving) -> _Scorer:
        """The version with what is known of it; the last few are remembered."""
        for known in self._scorers:
            if known.serving.model is serving.model and known.serving.policy == serving.policy:
                return known
        self._scorers = [*self._scorers, _Scorer(serving)][-VERSIONS_KEPT:]
        return self._scorers[-1]

    def _take(self, rows: int) -> list[tuple[_Request, slice]]:
        """The `rows` oldest waiting rows, as slices of their requests; requests fully taken leave the queue."""
        parts: list[tuple[_Request, slice]] = []
        while rows > 0:
            request = self._waiting[0]
            n = min(rows, len(request.rows) - request.taken)
            parts.append((request, slice(request.taken, request.taken + n)))
            request.taken += n
            rows -= n
            if request.taken == len(request.rows):
                self._waiting.popleft()
        return parts

    def close(self, timeout_s: float = 0.0) -> None:
        """Let the scoring thread end when its dispatch is done; wait for that for `timeout_s` at most."""
        self._explainer.close(timeout_s)
        self._thread.close(timeout_s)
