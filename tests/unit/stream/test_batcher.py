"""The dispatch decision, by table; and the batcher's loop around it, with a model that only counts."""

import asyncio
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.dispatch import CostModel, Dispatch, Wait, Waiting, decide
from ebbtide.stream.telemetry import Dispatched, Telemetry
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import ArithmeticModel, FussyModel, rows_of

SIZES = (8, 32, 128)


def costs(**seconds: float) -> CostModel:
    """A cost model that has learned exactly these seconds: costs(s8=.001, s32=.002, s128=.004)."""
    model = CostModel(SIZES)
    for name, value in seconds.items():
        for _ in range(400):
            model.learn(int(name[1:]), value)
    return model


FLAT = {"s8": 0.001, "s32": 0.002, "s128": 0.004}
STEEP = {"s8": 0.001, "s32": 0.004, "s128": 0.016}


@pytest.mark.parametrize(
    ("rows", "slack_s", "age_s", "linger_s", "cost", "expected"),
    [
        # nothing waits: wait for a row, however long
        (0, 9.0, 0.0, 0.0, FLAT, Wait(None)),
        # work-conserving: one row goes at once
        (1, 9.0, 0.0, 0.0, FLAT, Dispatch(1, 8, "idle")),
        # a size filled to the brim
        (8, 9.0, 0.0, 0.0, FLAT, Dispatch(8, 8, "full")),
        (500, 9.0, 0.0, 0.0, FLAT, Dispatch(128, 128, "full")),
        # padding up 100 rows to 128 costs less than 32 and the rest padded to 128 anyway
        (100, 9.0, 0.0, 0.0, FLAT, Dispatch(100, 128, "idle")),
        # 33 rows: 32 and then one (5 ms) cost less than padding to 128 (16 ms)
        (33, 9.0, 0.0, 0.0, STEEP, Dispatch(32, 32, "full")),
        # 100 rows: three times 32 and then four cost less than padding to 128 (13 ms against 16 ms)
        (100, 9.0, 0.0, 0.0, STEEP, Dispatch(32, 32, "full")),
        # ... but not where sizes cost nearly the same
        (33, 9.0, 0.0, 0.0, {"s8": 0.0030, "s32": 0.0035, "s128": 0.004}, Dispatch(33, 128, "idle")),
        # the oldest row's deadline allows 3 ms: no more than 32 rows go
        (100, 0.003, 0.0, 0.0, FLAT, Dispatch(32, 32, "deadline")),
        (5, 0.0015, 0.0, 0.0, FLAT, Dispatch(5, 8, "idle")),
        # nothing meets a deadline that has passed: the largest dispatch clears the backlog fastest
        (500, -1.0, 0.0, 0.0, FLAT, Dispatch(128, 128, "full")),
        # linger: too few rows wait for company, for what is left of it
        (3, 9.0, 0.002, 0.005, FLAT, Wait(0.003)),
        (3, 9.0, 0.006, 0.005, FLAT, Dispatch(3, 8, "linger")),
        (128, 9.0, 0.0, 0.005, FLAT, Dispatch(128, 128, "full")),
    ],
)
def test_decide(
    rows: int,
    slack_s: float,
    age_s: float,
    linger_s: float,
    cost: dict[str, float],
    expected: Dispatch | Wait,
) -> None:
    now_s = 100.0
    waiting = Waiting(rows, now_s + slack_s, now_s - age_s)
    got = decide(waiting, now_s, costs(**cost), linger_s)
    if isinstance(expected, Wait) and expected.seconds is not None:
        assert isinstance(got, Wait)
        assert got.seconds == pytest.approx(expected.seconds)
    else:
        assert got == expected


def test_cost_is_learned() -> None:
    """A size that turns out slower than foreseen is foreseen as slow after some dispatches, others stay."""
    model = CostModel(SIZES, row_seconds=1e-4)
    assert model.seconds(8) == pytest.approx(8e-4)
    for _ in range(60):
        model.learn(8, 0.01)
    assert model.seconds(8) == pytest.approx(0.01, rel=0.01)
    assert model.seconds(32) == pytest.approx(32e-4)


class Listener(Telemetry):
    """Telemetry that remembers dispatches."""

    def __init__(self) -> None:
        self.seen: list[Dispatched] = []

    def dispatched(self, dispatch: Dispatched) -> None:
        self.seen.append(dispatch)


class Doubled(ArithmeticModel):
    """A later version, which says everything twice as loud."""

    version = 2

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        values, contributions, *_ = super().explain(rows, as_of)
        return Explained.by(values * 2, contributions * 2)


def batcher_of(model: ArithmeticModel, heard: Listener) -> Batcher:
    return Batcher(lambda: model, SystemClock(), heard, deadline_s=60.0, linger_s=0.0)


class Thoughtful(ArithmeticModel):
    """Explains when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = threading.Event(), threading.Event()

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        self.asked.set()
        assert self.may.wait(PATIENCE_S)
        return super().explain(rows, as_of)


async def test_no_dispatch_waits_for_an_explanation() -> None:
    """While one is under way, which shows in the age of the oldest call, rows are scored as ever."""
    heard, model = Listener(), Thoughtful()
    batcher = batcher_of(model, heard)
    loop = asyncio.create_task(batcher.run())
    as_of = np.ones(3, np.int64)
    why = asyncio.create_task(batcher.explain(rows_of(3), as_of, model))
    assert await asyncio.to_thread(model.asked.wait, PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S / 2):
        scored = await batcher.score(rows_of(3), as_of, events=3, oldest_ms=0)
    assert len(scored.p) == 3 and not why.done() and batcher.call_age_s > 0
    model.may.set()
    assert (await why).holds.all() and batcher.call_age_s == 0
    loop.cancel()
    batcher.close()


async def test_requests_share_dispatches_and_get_their_own_scores() -> None:
    """Forty requests of odd sizes, all at once: every row gets its own score, in far fewer dispatches than requests."""
    rng = np.random.default_rng(seed := 7)
    print(f"seed {seed}")
    heard, model = Listener(), ArithmeticModel(SIZES, seconds=0.002)
    batcher = batcher_of(model, heard)
    loop = asyncio.create_task(batcher.run())
    sizes = rng.integers(1, 60, 40)
    requests = [(rows_of(n, start=1000 * i), rng.integers(1, 10**12, n)) for i, n in enumerate(sizes)]
    now_ms = SystemClock().now_ms()
    answers = await asyncio.gather(
        *(batcher.score(rows, as_of, events=len(rows), oldest_ms=now_ms) for rows, as_of in requests)
    )
    for (rows, as_of), scored in zip(requests, answers, strict=True):
        assert np.array_equal(scored.p, model.expected(rows, as_of))
        assert scored.serving is model
    assert sum(d.rows for d in heard.seen) == sizes.sum()
    assert sum(d.events for d in heard.seen) == sizes.sum()
    assert all(d.rows <= d.size and d.padding == d.size - d.rows for d in heard.seen)
    assert len(heard.seen) < 40 / 2
    loop.cancel()
    batcher.close()


async def test_first_come_first_served_however_old() -> None:
    """A backlog's request does not go before a live one that was there first: turns are fair, not the scorer."""
    model = ArithmeticModel((8,), seconds=0.02)
    batcher = batcher_of(model, Listener())
    loop = asyncio.create_task(batcher.run())
    order: list[str] = []

    async def ask(name: str, oldest_ms: int) -> None:
        await batcher.score(rows_of(8), np.ones(8, np.int64), events=8, oldest_ms=oldest_ms)
        order.append(name)

    first = asyncio.create_task(ask("under way", 3_000))
    await asyncio.sleep(0.005)
    await asyncio.gather(first, ask("young", 2_000), ask("old", 1_000))
    assert order == ["under way", "young", "old"]
    loop.cancel()
    batcher.close()


async def test_a_failing_model_fails_those_who_asked_and_nobody_else() -> None:
    """The request in the failing dispatch hears of it, as something to retry; the next one is served."""
    model = ArithmeticModel((8,), seconds=0.0)
    batcher = batcher_of(model, Listener())
    loop = asyncio.create_task(batcher.run())
    model.fail_next = 2  # the dispatch, and the row that would show that the model works
    with pytest.raises(ScorerUnavailable, match="broken on purpose"):
        await batcher.score(rows_of(3), np.ones(3, np.int64), events=3, oldest_ms=0)
    scored = await batcher.score(rows_of(3), np.ones(3, np.int64), events=3, oldest_ms=0)
    assert len(scored.p) == 3
    loop.cancel()
    batcher.close()


async def test_only_the_owner_of_a_bad_row_misses_its_score() -> None:
    """
    partitions   0 ········   1 ···×···   2 ·×······   3 ········      in one dispatch, while one is under way
    scores       0 ········   1 ···N···   2 ·N······   3 ········      N: NaN; all others to the bit
    """
    rng = np.random.default_rng(seed := 8)
    print(f"seed {seed}")
    heard, model = Listener(), FussyModel(raises=[1003], nans=[2001], sizes=(8, 32, 128), seconds=0.002)
    batcher = batcher_of(model, heard)
    loop = asyncio.create_task(batcher.run())
    now_ms = SystemClock().now_ms()
    first = asyncio.create_task(batcher.score(rows_of(8, 9000), np.ones(8, np.int64), events=8, oldest_ms=1))
    await asyncio.sleep(0.001)
    requests = [(rows_of(8, start=1000 * i), rng.integers(1, 10**12, 8)) for i in range(4)]
    answers = await asyncio.gather(
        *(batcher.score(rows, as_of, events=8, oldest_ms=now_ms) for rows, as_of in requests), first
    )
    assert [d.rows for d in heard.seen] == [8, 32]
    for i, ((rows, as_of), scored) in enumerate(zip(requests, answers, strict=False)):
        expected = model.expected(rows, as_of)
        expected[{1: [3], 2: [1]}.get(i, [])] = np.nan
        assert scored.p.tobytes() == expected.tobytes()
        assert scored.serving is model
    loop.cancel()
    batcher.close()


async def test_a_bisection_teaches_nothing_about_costs() -> None:
    """A dispatch that took many calls is reported as long as it took, and leaves what the size is known to cost."""
    heard, model = Listener(), FussyModel(sizes=(32,), seconds=0.001)
    batcher = batcher_of(model, heard)
    loop = asyncio.create_task(batcher.run())
    as_of = np.ones(32, np.int64)
    await batcher.score(rows_of(32), as_of, events=32, oldest_ms=0)
    learned = batcher._scorers[0].costs.seconds(32)
    model.raises = [5]
    scored = await batcher.score(rows_of(32), as_of, events=32, oldest_ms=0)
    assert np.flatnonzero(np.isnan(scored.p)).tolist() == [5]
    assert batcher._scorers[0].costs.seconds(32) == learned
    assert heard.seen[1].actual_s > 5 * 0.001
    model.calls.clear()
    model.broken = True
    with pytest.raises(ScorerUnavailable):
        await batcher.score(rows_of(32), as_of, events=32, oldest_ms=0)
    assert model.calls == [32, 1]
    assert len(heard.seen) == 2
    loop.cancel()
    batcher.close()


async def test_a_new_version_shows_anew_that_it_can_score() -> None:
    """What the old one scored says nothing of the new one: broken for all but the stand-in, it gives nobody up."""

    class BrokenForAll(FussyModel):
        version = 2

    serving: list[FussyModel] = [FussyModel(sizes=(8,))]
    batcher = Batcher(lambda: serving[0], SystemClock(), Listener(), deadline_s=60.0, linger_s=0.0)
    loop = asyncio.create_task(batcher.run())
    rows, as_of = rows_of(3, start=1), np.ones(3, np.int64)
    await batcher.score(rows, as_of, events=3, oldest_ms=0)
    serving[0] = BrokenForAll(nans=range(1, 100), sizes=(8,))
    with pytest.raises(ScorerUnavailable, match="the first it was given"):
        await batcher.score(rows, as_of, events=3, oldest_ms=0)
    serving[0].nans = [2]
    assert np.isnan((await batcher.score(rows, as_of, events=3, oldest_ms=0)).p).tolist() == [
        False,
        True,
        False,
    ]
    loop.cancel()
    batcher.close()


async def test_reasons_come_from_the_version_that_scored() -> None:
    """A version takes over between the score and its explanation: each row is explained by its own version."""
    first, second = ArithmeticModel((8,)), Doubled((8,))
    serving: list[ArithmeticModel] = [first]
    batcher = Batcher(lambda: serving[0], SystemClock(), Listener(), deadline_s=60.0, linger_s=0.0)
    loop = asyncio.create_task(batcher.run())
    as_of = np.full(3, 86_400_000, np.int64)
    scored = []
    for model in (first, second):
        serving[0] = model
        scored.append(await batcher.score(rows_of(3), as_of, events=3, oldest_ms=0))
    for each, silence in zip(scored, (1.0, 2.0), strict=True):
        values, *_ = await batcher.explain(rows_of(3), as_of, each.serving)
        assert values[:, 0].tolist() == [silence] * 3
    loop.cancel()
    batcher.close()


async def test_no_request_is_scored_by_two_versions() -> None:
    """A version takes over in the middle of a request of many dispatches: all of it is scored by the version that
    served
    when it came, and what comes after it by the next."""

    class Second(ArithmeticModel):
        version = 2

        def expected(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.full(len(rows), 0.25, np.float32)

    first, second = ArithmeticModel((8,), seconds=0.002), Second((8, 16), seconds=0.002)
    serving: list[ArithmeticModel] = [first]
    batcher = Batcher(lambda: serving[0], SystemClock(), Listener(), deadline_s=60.0, linger_s=0.0)
    loop = asyncio.create_task(batcher.run())
    rows, as_of = rows_of(60), np.full(60, 86_400_000, np.int64)
    long = asyncio.create_task(batcher.score(rows, as_of, events=60, oldest_ms=0))
    await asyncio.sleep(0.005)
    serving[0] = second
    after = await batcher.score(rows, as_of, events=60, oldest_ms=0)
    before = await long
    assert (before.serving, after.serving) == (first, second)
    assert np.array_equal(before.p, first.expected(rows, as_of))
    assert np.array_equal(after.p, second.expected(rows, as_of))
    loop.cancel()
    batcher.close()


async def test_a_cancelled_request_leaves_the_queue() -> None:
    """A revoked partition's rows are not scored any more."""
    heard, model = Listener(), ArithmeticModel((8,), seconds=0.02)
    batcher = batcher_of(model, heard)
    loop = asyncio.create_task(batcher.run())
    busy = asyncio.create_task(batcher.score(rows_of(8), np.ones(8, np.int64), events=8, oldest_ms=1))
    await asyncio.sleep(0.005)
    gone = asyncio.create_task(batcher.score(rows_of(8), np.ones(8, np.int64), events=8, oldest_ms=2))
    await asyncio.sleep(0.001)
    gone.cancel()
    await busy
    await asyncio.sleep(0.03)
    assert sum(d.rows for d in heard.seen) == 8
    loop.cancel()
    batcher.close()
