"""The policy and the composer against an oracle that was written apart: the same transitions, episodes and alerts."""

import asyncio
import random
from collections import Counter
from functools import partial
from typing import Any, get_args

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import EVENT, EXPIRED, RESET, RETURNED, SILENCE, TERMINAL, Points
from ebbtide.featurestore.record.layout import EPISODE_FIELDS
from ebbtide.featurestore.record.reasons import Reasons
from ebbtide.model.explaining import explained as explaining
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.decision.budget import Spent
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.holdout import Holdout
from ebbtide.stream.decision.policy import Asked, Cause, State, Transition
from ebbtide.stream.decision.rules import Band, Rules
from ebbtide.stream.outputs.compose import Composer
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.turn import work as stream_work
from ebbtide.stream.turn.work import Piece, Work
from tests.support.oracle.decisions import (
    Explained,
    ModelFacts,
    Origin,
    Purse,
    Story,
    alert_of,
    is_held_out,
    next_story,
)
from tests.support.oracle.decisions import Rules as Told
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel
from tests.support.seams.turns import from_the_beginning

CAUSES = (EVENT, SILENCE, TERMINAL, RESET, RETURNED, EXPIRED)
TOPIC, PARTITION = "clicks", 3
CUSTOMERS = [f"customer {i} ☕" for i in range(4)]
Walk = list[tuple[int, int, int, float, int]]
"""Customer, as_of, cause, p, and when the event of the point happened."""


class Loud(ArithmeticModel):
    """Explains by a formula of the record that has ties, zeros and both signs."""

    def explain(self, rows: NDArray[np.void], as_of: NDArray[np.int64]) -> explaining.Explained:
        n = np.arange(len(features(SPEC)))
        seeds = (rows["activity_count"].astype(np.int64) * 7919 + as_of)[:, None]
        contributions = ((seeds * (n + 3)) % 11 - 5).astype(np.float32) / 7
        values = ((seeds % 1000 + n) / 3).astype(np.float32)
        sequence = ((seeds[:, 0] % 13 - 6) / 7).astype(np.float32)
        parts = explaining.Explained.by(values, contributions.astype(np.float32))
        return parts._replace(sequence=sequence, logit=parts.logit + sequence)


def random_rules(draw: random.Random) -> EpisodePolicy:
    low, high = sorted(draw.choice([0.1, 0.3, 0.5, 0.7, 0.9, draw.random()]) for _ in range(2))
    enter = max(high, 0.01)
    bands = sorted({draw.uniform(enter, 1.0) for _ in range(draw.choice([0, 0, 1, 2]))} - {enter})
    rules = Rules(
        enter=enter,
        exit=low,
        dwell_ms=draw.choice([0, 1, 50, 400]),
        cooldown_ms=draw.choice([0, 1, 100, 1_000]),
        bands=tuple(Band(name=f"band {i}", enter=lowest) for i, lowest in enumerate(bands)),
    )
    return EpisodePolicy(
        (rules,),
        draw.choice([None, None, 0.4, 1.0, 3.0, 20.0]),
        draw.choice([Holdout(), Holdout(), Holdout(0.5, str(draw.random()))]),
    )


def random_walk(draw: random.Random, policy: EpisodePolicy) -> Walk:
    """Points of four customers. Times stand still, creep and leap, and fall back where one was forgotten."""
    walk: Walk = []
    clocks = [draw.choice([1, 1_700_000_000_000]) for _ in range(4)]
    for _ in range(draw.randrange(1, 120)):
        customer = draw.randrange(4)
        cause = draw.choices(CAUSES, (10, 5, 1, 1, 1, 1))[0]
        clocks[customer] += draw.choice([0, 0, 1, 17, 50, 100, 500, 3_600_000])
        rules = policy.targets[0]
        thresholds = [rules.enter, rules.exit, *(band.enter for band in rules.bands)]
        p = draw.choice([0.0, 1.0, *thresholds, draw.random(), draw.random(), float("nan")])
        late = draw.choice([0, 0, 0, 1, 60, 2_000]) if cause == EVENT else 0
        walk.append(
            (customer, clocks[customer], cause, float(np.float32(p)), max(1, clocks[customer] - late))
        )
        if cause == RESET and draw.random() < 0.5:
            clocks[customer] = max(1, clocks[customer] - draw.randrange(1_000))
    return walk


def points_of(walk: Walk) -> Points:
    rows = LAYOUT.empty(len(walk))
    rows["activity_count"] = np.arange(len(walk))
    rows["last_seen"] = [last_seen(step) for step in walk]
    columns = (np.array([step[i] for step in walk]) for i in range(3))
    customer, as_of, cause = columns
    return Points(
        rows, customer.astype(np.int32), as_of.astype(np.int64), cause.astype(np.uint8),
        np.arange(len(walk), dtype=np.int32),
    )  # fmt: skip


def events_of(n: int, first: int) -> EventBatch:
    """One event a point; all that is read of it is whose it is and where it lies."""
    zero = np.zeros(n, np.int64)
    return EventBatch(
        CUSTOMERS, zero.astype(np.int32), zero.astype(np.uint8), zero,
        zero.astype(np.float64), zero.astype(np.uint64), first + np.arange(n, dtype=np.int64),
    )  # fmt: skip


def last_seen(step: tuple[int, int, int, float, int]) -> int:
    """Of most customers something is known."""
    return 0 if step[1] % 3 == 0 else step[4]


async def spoken(
    draw: random.Random, walk: Walk, policy: EpisodePolicy
) -> tuple[list[dict[str, Any]], list[Any], Counter[str]]:
    """By the real ones, in batches as they are drawn: the alerts, the records in the end, and what was held back."""
    model = Loud(policy=policy)
    batcher = Batcher(lambda: model, SystemClock(), Telemetry(), deadline_s=60.0, linger_s=0.0)
    serving = asyncio.create_task(batcher.run())
    composer = Composer(TOPIC, LAYOUT, batcher)
    parser, opened = Parser(SPEC), from_the_beginning(LAYOUT.id, PARTITION, PARTITION + 1)
    rows, alerts, at = LAYOUT.empty(4), [], 0
    spent: list[Spent] = [()]
    held: list[Transition] = []
    try:
        while at < len(walk):
            part = walk[at : at + draw.choice([1, 3, 200])]
            points, after = points_of(part), rows.copy()
            points.rows["activity_count"] += at
            # The fold has emptied whom it forgot.
            for customer in {c for c, _, cause, *_ in part if cause > TERMINAL}:
                after[customer] = LAYOUT.empty(1)[0]
            p = np.array([step[3] for step in part], np.float32)
            time = np.array([step[4] for step in part])
            asked = Asked(points, p, CUSTOMERS, time, np.zeros(len(part), np.int32), spent, PARTITION + 1)
            decided, spent = policy.decide(asked, rows, after)
            held += [t for t in decided if t.held]
            transitions = [t for t in decided if not t.held]
            work = Work.of([Piece(opened, None)], parser)
            work.events = events_of(len(part), 100 + at)
            origin = stream_work.Origin(np.zeros(len(part), np.int32), work.events.position)
            composed = (await composer.compose(work, transitions, points, origin, Scored(p, model))).alerts
            for entry in composed.get(0, []):
                alerts.append(orjson.loads(entry.value))
                assert entry.id.decode() == alerts[-1]["alert_id"]
            rows, at = after, at + len(part)
    finally:
        serving.cancel()
        batcher.close()
    return alerts, list(rows), Counter(str(t.held) for t in held)


def foretold(walk: Walk, policy: EpisodePolicy) -> tuple[list[dict[str, Any]], list[Story], Counter[str]]:
    """By the oracle, point by point."""
    (ours,) = policy.targets
    bands = (("high", ours.enter), *((band.name, band.enter) for band in ours.bands))
    rules = Told(ours.enter, ours.exit, ours.dwell_ms, ours.cooldown_ms, bands)
    listed, words, model = features(SPEC), Reasons(SPEC), Loud(policy=policy)
    facts = ModelFacts(model.name, model.version, rules, LAYOUT.id, SPEC.horizon_ms)
    stories, alerts, held = [Story()] * 4, [], Counter[str]()
    limit = policy.alerts_per_minute
    purse = None if limit is None else Purse(limit, PARTITION + 1)
    for n, (customer, as_of, cause, p, happened) in enumerate(walk):
        stories[customer], decided = next_story(
            stories[customer], as_of, cause, p, rules,
            happened=happened, purse=purse,
            told=not is_held_out(CUSTOMERS[customer], policy.holdout.share, policy.holdout.salt),
        )  # fmt: skip
        if decided is None:
            continue
        if not decided.told:
            held["holdout" if decided.sequence else "budget"] += 1
            continue
        row = LAYOUT.empty(1)
        row["activity_count"] = n
        why = model.explain(row, np.array([as_of]))
        explained = Explained(
            [f.name for f in listed],
            [f.group for f in listed],
            partial(words.words, values=why.values[0]),
            why.values[0].tolist(),
            why.contributions[0].tolist(),
            float(why.sequence[0]),
        )
        origin = Origin(TOPIC, PARTITION, 100 + n)
        seen = last_seen(walk[n])
        row["last_seen"] = seen
        given = b"".join(row[name].tobytes() for name in LAYOUT.model_fields)
        alerts.append(alert_of(decided, CUSTOMERS[customer], cause, p, origin, facts, explained, seen, given))
    return alerts, stories, held


@pytest.mark.parametrize("part", range(4))
async def test_policy_and_composer_agree_with_the_oracle(part: int) -> None:
    """Random points, rules and cuts into batches: every alert, field for field, and every episode in the end."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, part {part}")
    draw, seen = random.Random(seed), Counter[str]()
    for _ in range(150):
        policy = random_rules(draw)
        walk = random_walk(draw, policy)
        alerts, rows, held = await spoken(draw, walk, policy)
        wanted, stories, held_back = foretold(walk, policy)
        # Within a batch the order is that of the points.
        assert alerts == wanted
        assert held == held_back
        for row, story in zip(rows, stories, strict=True):
            assert {name: row[name].item() for name in EPISODE_FIELDS} == story.fields
        seen.update(alert["state"] for alert in alerts)
        seen.update(alert["cause"] for alert in alerts)
        seen.update(held)
    words = (*get_args(State), *get_args(Cause), "budget", "holdout")
    assert min(seen[kind] for kind in words) > 0, seen
