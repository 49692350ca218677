"""How many rows go to the model next: a pure decision, and the loop around it that is too dumb to be wrong.

All partitions feed one scorer. It is *work-conserving*: as soon as the scorer is free and a row waits, it goes, so an
idle service answers at once and a busy one batches by itself, because rows gather while the last dispatch is on its
way. (`linger` makes an idle scorer wait, for a GPU whose fixed cost rewards it; 0 by default.) What is learned is what
each padded size costs, and what is decided is *how many*: rows go oldest event first, as many as still let the oldest
one meet its deadline.

    latency contract of one row: (dispatch under way) + (dispatches of older rows) + its own dispatch
    no row waits for another partition's load, fold or apply, and none waits for company unless `linger` says so

A row that makes the model fail does not fail its company: `stream/scoring/guard.py` finds it, in a bounded number of
calls, and only its own score is missing. What such a dispatch took says nothing of its size, so nothing is learned from
it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.stream.clock import Clock
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.scoring.executor import OwnThread
from ebbtide.stream.scoring.guard import Guarded, Model
from ebbtide.stream.telemetry import Dispatched, Reason, Telemetry

COST_MEMORY = 0.1
"""Weight of the newest measurement in a size's learned cost: about the last ten dispatches count."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the `rows` oldest rows now, padded to `size`."""

    rows: int
    size: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for `seconds`, or until a row arrives when None."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue as the decision sees it; all times on one monotonic clock, seconds."""

    rows: int
    oldest_deadline_s: float
    first_queued_s: float


class CostModel:
    """Seconds a dispatch of each padded size takes: an exponential average, seeded by a straight line through zero."""

    def __init__(self, sizes: Sequence[int], *, row_seconds: float = 5e-5) -> None:
        self.sizes = tuple(sizes)
        self._seconds = {size: size * row_seconds for size in sizes}

    def learn(self, size: int, seconds: float) -> None:
        """Take one measured dispatch into account."""
        self._seconds[size] += COST_MEMORY * (seconds - self._seconds[size])

    def seconds(self, size: int) -> float:
        """What a dispatch of that padded size is expected to take."""
        return self._seconds[size]

    def padded(self, rows: int) -> int:
        """The smallest size that holds `rows`, or the largest there is."""
        return next((size for size in self.sizes if size >= rows), self.sizes[-1])

    def first(self, rows: int) -> tuple[int, float]:
        """The size to send first of `rows` >= 1 rows, and the seconds until the last of at most the largest size is
        scored: padded up in one dispatch, or one that is full and the rest after it, whichever clears them sooner."""
        up = self.padded(rows)
        filled = next((size for size in reversed(self.sizes) if size <= rows), up)
        if filled < up:
            seconds = self._seconds[filled] + self.first(rows - filled)[1]
            if seconds < self._seconds[up]:
                return filled, seconds
        return up, self._seconds[up]


def decide(waiting: Waiting, now_s: float, costs: CostModel, linger_s: float) -> Dispatch | Wait:
    """What to do now that the scorer is free. Pure.

    Nothing waits -> Wait(None). Too few for the largest size and younger than `linger_s` -> Wait. Otherwise a
    Dispatch: of the sizes that the waiting rows could fill or be padded to, the largest that still meets the oldest
    deadline; when none can meet it any more the largest, which clears a backlog fastest. Padding up is refused where
    filling smaller sizes, one after the other, costs less (`CostModel.first`).
    """
    if waiting.rows == 0:
        return Wait(None)
    largest = costs.sizes[-1]
    age = now_s - waiting.first_queued_s
    if waiting.rows < largest and age < linger_s:
        return Wait(linger_s - age)
    size, _ = costs.first(waiting.rows)
    slack = waiting.oldest_deadline_s - now_s
    if costs.seconds(size) > slack:
        in_time = [s for s in costs.sizes if s < size and costs.seconds(s) <= slack]
        if in_time:
            return Dispatch(min(in_time[-1], waiting.rows), in_time[-1], "deadline")
    rows = min(size, waiting.rows)
    if rows == size:
        return Dispatch(rows, size, "full")
    return Dispatch(rows, size, "linger" if linger_s > 0 else "idle")


@dataclass(frozen=True, slots=True)
class Scored:
    """p float32[n] in [0, 1], and the version int64[n] of the model that gave each.

    p is NaN for a row that the model fails for, alone and repeatedly, while it scores others: it was given up.
    """

    p: NDArray[np.float32]
    version: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Request:
    rows: Rows
    as_of: NDArray[np.int64]
    events: int
    oldest_ms: int
    deadline_s: float
    queued_s: float
    p: NDArray[np.float32]
    version: NDArray[np.int64]
    done: asyncio.Future[Scored]
    taken: int = 0
    left: int = 0


class Batcher:
    """The one scorer that every partition shares. `run` is its task; `score` and `explain` may be called by many.

    deadline_s: how long after the oldest event's Kafka timestamp its score should be there; it decides sizes, nothing
    is ever dropped for it. A dispatch for which the model fails altogether fails every request that had rows in it.
    """

    def __init__(
        self,
        current: Callable[[], Model],
        clock: Clock,
        telemetry: Telemetry,
        *,
        deadline_s: float,
        linger_s: float,
    ) -> None:
        self._current, self._clock, self._telemetry = current, clock, telemetry
        self._deadline_s, self._linger_s = deadline_s, linger_s
        self._waiting: list[_Request] = []
        self._arrived = asyncio.Event()
        self._thread = OwnThread("scorer")
        self._costs = CostModel(current().sizes)
        self._recent: dict[int, Guarded] = {}

    async def score(self, rows: Rows, as_of: NDArray[np.int64], *, events: int, oldest_ms: int) -> Scored:
        """Score n rows as of int64[n] ms. `events`: how many events brought them; `oldest_ms`: the oldest one's Kafka
        timestamp, which is the rows' place in the queue. Raises ScorerUnavailable when the model fails for more than a
        few rows."""
        n = len(rows)
        if n == 0:
            return Scored(np.empty(0, np.float32), np.empty(0, np.int64))
        now_s = self._clock.monotonic_s()
        age_s = (self._clock.now_ms() - oldest_ms) / 1000
        request = _Request(
            rows, as_of, events, oldest_ms, now_s - age_s + self._deadline_s, now_s, np.empty(n, np.float32),
            np.empty(n, np.int64), asyncio.get_running_loop().create_future(), left=n,
        )  # fmt: skip
        self._waiting.append(request)
        self._waiting.sort(key=lambda r: r.oldest_ms)
        self._arrived.set()
        try:
            return await request.done
        finally:
            if request in self._waiting:  # cancelled: its partition was revoked
                self._waiting.remove(request)

    async def explain(
        self, rows: Rows, as_of: NDArray[np.int64], version: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features and contributions, f4[n, F] each, of the few rows that became alerts; by the version that scored
        each, also when another has taken over since. NaN for a row that it cannot explain. Raises ScorerUnavailable
        when it cannot explain any."""
        parts = []
        order = np.argsort(version, kind="stable")
        for each in np.unique(version):
            mine = np.flatnonzero(version == each)
            model = self._recent.get(int(each)) or self._guarded(self._current())
            parts.append(await self._thread.run(model.explain, rows[mine], as_of[mine]))
        back = np.argsort(order, kind="stable")
        return np.concatenate([f for f, _ in parts])[back], np.concatenate([c for _, c in parts])[back]

    async def run(self) -> None:
        """Serve for ever. Cancel it to stop; what waits is then never answered."""
        while True:
            self._arrived.clear()
            now_s = self._clock.monotonic_s()
            waiting = Waiting(
                sum(len(r.rows) - r.taken for r in self._waiting),
                min((r.deadline_s for r in self._waiting), default=0.0),
                min((r.queued_s for r in self._waiting), default=0.0),
            )
            self._telemetry.queued(waiting.rows)
            match decide(waiting, now_s, self._costs, self._linger_s):
                case Dispatch() as dispatch:
                    await self._dispatch(dispatch, now_s)
                case Wait(seconds):
                    try:
                        async with asyncio.timeout(seconds):
                            await self._arrived.wait()
                    except TimeoutError:
                        continue

    async def _dispatch(self, dispatch: Dispatch, now_s: float) -> None:
        parts = self._take(dispatch.rows)
        one = len(parts) == 1
        rows = parts[0][0].rows[parts[0][1]] if one else np.concatenate([r.rows[s] for r, s in parts])
        as_of = parts[0][0].as_of[parts[0][1]] if one else np.concatenate([r.as_of[s] for r, s in parts])
        guarded = self._guarded(self._current())
        model = guarded.model
        started_s = self._clock.monotonic_s()
        try:
            found = await self._thread.run(guarded.score, rows, as_of)
        except ScorerUnavailable as error:
            for request, _ in parts:
                if request in self._waiting:
                    self._waiting.remove(request)
                if not request.done.done():
                    # One each: an exception that several tasks raise collects the tracebacks of all.
                    request.done.set_exception(ScorerUnavailable(str(error)))
            return
        actual_s = self._clock.monotonic_s() - started_s
        self._telemetry.dispatched(
            Dispatched(
                dispatch.reason, model.version, len(rows), sum(r.events for r, s in parts if s.start == 0),
                dispatch.size, now_s - min(r.queued_s for r, _ in parts), self._costs.seconds(dispatch.size), actual_s,
            )
        )  # fmt: skip
        if found.calls == 1:
            self._costs.learn(dispatch.size, actual_s)
        start = 0
        for request, part in parts:
            n = part.stop - part.start
            request.p[part] = found.answer[start : start + n]
            request.version[part] = model.version
            start += n
            request.left -= n
            if request.left == 0 and not request.done.done():
                request.done.set_result(Scored(request.p, request.version))

    def _guarded(self, model: Model) -> Guarded:
        """The model with what is known of it; kept for the version in use and the one before it, whose alerts may not
        be composed yet."""
        known = self._recent.get(model.version)
        if known is None or known.model is not model:
            known = Guarded(model)
            self._recent = {v: self._recent[v] for v in list(self._recent)[-1:]} | {model.version: known}
            if tuple(model.sizes) != self._costs.sizes:
                self._costs = CostModel(model.sizes)
        return known

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
                self._waiting.pop(0)
        return parts

    def close(self, timeout_s: float = 0.0) -> None:
        """Let the scoring thread end when its dispatch is done; wait for that for `timeout_s` at most."""
        self._thread.close(timeout_s)
