"""`ebbtide policy simulate`: it decides as the service does, and what it counts can be counted on the fingers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import yaml
from click.testing import CliRunner

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.model.examples.dataset import History
from ebbtide.ops.commands.policy import command
from ebbtide.ops.policy.propose import at_enter, candidates, for_gain, for_rate
from ebbtide.ops.policy.report import Money, as_json, draw, table
from ebbtide.ops.policy.simulate import Outcome, Truth, score_log, simulate
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.holdout import Holdout
from ebbtide.stream.decision.rules import Band, Rules
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel
from tests.support.seams.streams import LogRecord
from tests.support.seams.world import DAY_MS, PARTITIONS, T0, World, logs_of

RULES = Rules(
    enter=0.3, exit=0.25, dwell_ms=2 * DAY_MS, cooldown_ms=DAY_MS, bands=(Band(name="critical", enter=0.5),)
)
HELD_OUT = EpisodePolicy((RULES,), holdout=Holdout(0.2, "salt"))


def log_of(records: list[LogRecord]) -> EventBatch:
    return Parser(SPEC).parse(records).events


async def test_it_decides_as_the_service_does() -> None:
    """A log through the pipeline and through the simulation: the same transitions, but for the silences after each
    customer's last event, which only timers take."""
    logs = logs_of(seed=5)
    world = World(0, logs, rate=0.0)
    world.model = ArithmeticModel(sizes=(8, 32), policy=HELD_OUT)
    await world.finish(world.worker())
    said = {
        (alert["customer"], alert["sequence"], alert["state"], alert["band"])
        for alert in map(orjson.loads, world.alerts().values())
    }
    records = sorted((record for log in logs for record in log), key=lambda record: record.timestamp)
    log = log_of(records)
    history = History(LAYOUT, log, int(log.time.max()) + 1)
    decisions = score_log(history, world.model, history.known_until_ms, PARTITIONS)
    of_time = decisions.points.event < 0
    simulated = {
        (log.customers[decisions.points.customer[t.point]], t.sequence, t.state, RULES.band(t.band).name)
        for t in decisions.decide(HELD_OUT).transitions
        if not t.held and not of_time[t.point]
    }
    assert said == simulated
    assert len(said) > 100


def visits(who: int, *days: float) -> list[LogRecord]:
    user = f"customer-{who}"
    return [
        LogRecord(n, T0 + round(day * DAY_MS), user.encode(), orjson.dumps(
            {"user_id": user, "type": "visit", "ts": T0 + round(day * DAY_MS)}
        ))
        for n, day in enumerate(days)
    ]  # fmt: skip


@pytest.fixture
def tried() -> tuple[Outcome, Outcome]:
    """Horizon 14 days, p = 1 - 1 / (1 + days silent / 7) less 1 % a visit, asked after 1, 2, 4, 8 and 14 days.

    day          0            14      20             40           100: the log's end
    customer 0   ●──────s(8)──┤ lost                                       alerted at 8 days, rightly, 6 days ahead
    customer 1   ●──────s(8)─────●────── s(8) ─┤ lost                       alerted twice, once wrongly
    customer 2   ● ● ● ● … every day                                       never
    customer 3                                                    ●s(8)    alerted on day 98: nobody knows yet
    """
    records = [
        *visits(0, 0), *visits(1, 0, 20), *visits(2, *range(101)), *visits(3, 90),
    ]  # fmt: skip
    log = log_of(sorted(records, key=lambda record: record.timestamp))
    history = History(LAYOUT, log, T0 + 100 * DAY_MS + 1)
    decisions = score_log(history, ArithmeticModel(), history.known_until_ms, 1)
    truth = Truth.of(decisions, history, T0)
    policy = EpisodePolicy.of(enter=0.5, exit=0.4)
    return simulate(decisions, policy, truth), simulate(
        decisions, replace(policy, holdout=Holdout(0.999_999_999, "")), truth
    )


def test_outcomes_are_counted(tried: tuple[Outcome, Outcome]) -> None:
    found, nobody = tried
    assert (found.opened, found.known, found.right) == (4, 3, 2)
    assert (found.churners, found.foreseen) == (3, 3)
    assert found.lead_days_p50 == pytest.approx(6.0)
    assert found.opened_per_day == pytest.approx(4 / 100, rel=1e-6)
    # 2 were right; of the fourth the model's own p counts: 1 - 7 / 15 - 0.01
    assert found.expected_right == pytest.approx(2 + 8 / 15 - 0.01)
    assert found.gain(value=10, cost=1, saved=0.5) == pytest.approx(5 * (2 + 8 / 15 - 0.01) - 4)
    assert (nobody.opened, nobody.recall, nobody.held["holdout"]) == (
        0,
        0.0,
        found.said["opened"] + found.said["resolved"],
    )
    money = Money(10, 1, 0.5)
    data = as_json(found, money)
    assert (data["precision"], data["recall"], data["cost"]) == (2 / 3, 1.0, 4.0)
    assert table([("one", found), ("none", nobody)], money).row_count == 2


def test_enter_is_found_for_a_rate_and_for_a_gain(tmp_path: Path) -> None:
    """The lowest threshold that stays within the rate; the one of the greatest gain among those that were tried."""
    rng = np.random.default_rng(seed := 3)
    print(f"seed {seed}")
    records = [
        record
        for who in range(120)
        for record in visits(who, *np.cumsum(rng.exponential(1 + who % 7, size=12)))
    ]
    log = log_of(sorted(records, key=lambda record: record.timestamp))
    history = History(LAYOUT, log, int(log.time.max()) + 1)
    decisions = score_log(history, ArithmeticModel(), history.known_until_ms, 4)
    truth = Truth.of(decisions, history, T0 + 5 * DAY_MS)
    policy = EpisodePolicy.of(enter=0.9, exit=0.2, cooldown_ms=DAY_MS)

    def attempt(enter: float) -> Outcome:
        return simulate(decisions, at_enter(policy, enter, keep_exit=True), truth)

    found = [attempt(enter) for enter in candidates(decisions, truth.from_ms)]
    assert [each.enter for each in found] == sorted(each.enter for each in found)
    middle = found[len(found) // 2].opened_per_day
    best = for_rate(found, middle, attempt)
    assert best is not None and best.opened_per_day <= middle
    assert best.enter <= found[len(found) // 2].enter
    assert for_rate(found, -1.0, attempt) is None
    money = Money(100, 20)
    assert money.of(for_gain(found, money)) == max(money.of(each) for each in found)
    assert for_gain(found, Money(0.001, 1_000)).opened == min(each.opened for each in found)
    draw(tmp_path, found, [("best", best)], money)
    assert {path.name for path in tmp_path.iterdir()} == {"rates.png", "gain.png"}


def test_check_says_what_is_in_force_and_what_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("dwell: 2d\nbands: {critical: 0.9}\nholdout: 0.1\n")
    shown = CliRunner().invoke(command, ["check", "--policy", str(file)])
    assert shown.exit_code == 0, shown.output
    data = yaml.safe_load(shown.output)
    assert (data["dwell"], data["bands"], data["holdout"], data["enter"]) == (
        "2d",
        {"critical": 0.9},
        0.1,
        None,
    )
    file.write_text("targets: {purchase: {dwell: 2d}}\n")
    refused = CliRunner().invoke(command, ["check", "--policy", str(file)])
    assert "names purchase: the spec has activity" in str(refused.exception)
