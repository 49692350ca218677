"""A policy with everything in it is as crash-proof as the features: faults, cuts, deaths and timers change nothing.

With a budget, which customers share, timers and events reach it in another order: of every customer all is the
same up to their first decision that it holds back in either.
"""

import asyncio
import random
from collections import Counter, defaultdict

import numpy as np
import orjson
import pytest

from ebbtide.featurestore.record.layout import Rows
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.holdout import Holdout
from ebbtide.stream.decision.policy import Asked, Decided
from ebbtide.stream.decision.rules import Band, Rules
from tests.integration.test_timers import Timed, live_to_the_end
from tests.support.seams.scoring import ArithmeticModel
from tests.support.seams.world import (
    DAY_MS,
    PARTITIONS,
    World,
    assert_same_end,
    logs_of,
)

RULES = Rules(
    enter=0.3, exit=0.25, dwell_ms=2 * DAY_MS, cooldown_ms=DAY_MS, bands=(Band(name="critical", enter=0.5),)
)
SHARED = EpisodePolicy((RULES,), alerts_per_minute=0.001, holdout=Holdout(0.2, "salt"))
"""An opening in about two days for each of the partitions."""
ALONE = EpisodePolicy((RULES,), holdout=SHARED.holdout)


class Listening(ArithmeticModel):
    """Its policy remembers what it held back: how often and why; of each customer, as of when the budget first did."""

    def __init__(self, policy: EpisodePolicy) -> None:
        super().__init__(sizes=(8, 32), policy=policy)
        self.inner, self.targets = policy, policy.targets
        self.held: Counter[str] = Counter()
        self.first_ms: dict[str, int] = {}
        self.policy = self  # type: ignore[assignment]  # it is one

    def holds_out(self, customer: str) -> bool:
        return self.inner.holds_out(customer)

    def decide(self, asked: Asked, before: Rows, after: Rows) -> Decided:
        decided = self.inner.decide(asked, before, after)
        for t in decided.transitions:
            if t.held:
                self.held[t.held] += 1
            if t.held == "budget":
                name = asked.customers[asked.points.customer[t.point]]
                as_of = int(asked.points.as_of[t.point])
                self.first_ms[name] = min(as_of, self.first_ms.get(name, as_of))
        return decided


async def clean(logs: list[list], policy: EpisodePolicy) -> World:  # type: ignore[type-arg]  # of log records
    world = World(0, logs, rate=0.0)
    world.model = Listening(policy)
    await world.finish(world.worker())
    return world


@pytest.mark.parametrize("seed", range(3))
async def test_faults_and_deaths_change_nothing_with_a_budget(seed: int) -> None:
    """Without timers a partition's points come in the order of its log: the budget holds back the same ones."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    logs = logs_of(seed=300 + seed)
    wanted = await clean(logs, SHARED)
    assert isinstance(wanted.model, Listening)
    assert wanted.model.held["budget"] > 10 and wanted.model.held["holdout"] > 10
    world = World(seed, logs, rate=0.03)
    world.model = Listening(SHARED)
    world.model.fail_next = 2
    for _ in range(5):
        async with world.at_work(world.worker()):
            await asyncio.sleep(float(rng.uniform(0.002, 0.05)))
        world.source.revoke()
    await world.finish(world.worker())
    await assert_same_end(world, wanted)
    for partition in range(PARTITIONS):
        ours, theirs = [await w.store.checkpoint(partition) for w in (world, wanted)]
        assert ours is not None and theirs is not None and ours.budget == theirs.budget != ()
    said = [orjson.loads(value) for value in world.alerts().values()]
    states = Counter((alert["state"], alert["band"]) for alert in said)
    assert states["escalated", "critical"] and states["opened", "high"] and states["resolved", "critical"]
    assert not any(SHARED.holds_out(alert["customer"]) for alert in said)


async def test_timers_and_events_tell_the_same_of_every_band() -> None:
    """Bands, dwell, cool-down and holdout, no budget: as without a policy of that kind."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    timed, wanted = await both(seed, ALONE, chaos=0.4)
    assert await timed.world.records() == await wanted.records()
    assert timed.alerts() == wanted.alerts()
    told = Counter(orjson.loads(alert)["state"] for alert in timed.alerts().values())
    assert min(told[state] for state in ("opened", "escalated", "resolved")) > 0


async def test_a_budget_changes_nothing_before_it_holds_back() -> None:
    """Timers reach it in the order of due times, events in that of the log; held back is counted in both."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    timed, wanted = await both(seed, SHARED, chaos=0.0)
    models = [world.model for world in (timed.world, wanted) if isinstance(world.model, Listening)]
    assert all(model.held["budget"] > 0 for model in models)
    told: list[dict[str, list[tuple[int, str]]]] = []
    for world in (timed, wanted):
        told.append(defaultdict(list))
        for value in world.alerts().values():
            alert = orjson.loads(value)
            told[-1][alert["customer"]].append((alert["sequence"], alert["state"]))
    for name in told[0].keys() | told[1].keys():
        first_ms = min((model.first_ms[name] for model in models if name in model.first_ms), default=2**62)
        before = [[each for each in sorted(of[name]) if each[0] < first_ms] for of in told]
        assert before[0] == before[1], name
    firsts = [min(said)[1] for of in told for said in of.values() if said]
    assert set(firsts) == {"opened"}, "nobody hears of the end of what they did not hear begin"
    assert told[0] != told[1], "the budget was reached in another order"


async def both(seed: int, policy: EpisodePolicy, chaos: float) -> tuple[Timed, World]:
    """A log as it comes, with timers, then a hundred days of nothing and a last event of everybody; and the same log
    without timers."""
    timed = Timed(seed, 0.01 if chaos else 0.0)
    timed.world.model = Listening(policy)
    await live_to_the_end(timed, seed, chaos)
    return timed, await clean(timed.logs, policy)
