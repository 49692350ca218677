"""The pipeline under faults: whatever fails, and however the log is cut, the end is the same.

The expected end is a run without faults, whole batches, one partition after the other; records and alerts of that run
are checked against the naive oracle and by hand elsewhere. Here a worker meets lost batches, lost answers of the store
before and after it acted, unacknowledged messages, a failing model, owners that come and go and two at once.
"""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import EPISODE_FIELDS
from ebbtide.stream.outputs.alert import Alert
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import LAYOUT, SPEC, FussyModel
from tests.support.seams.streams import LogRecord
from tests.support.seams.world import (
    LIMITS,
    PARTITIONS,
    T0,
    World,
    assert_same_end,
    clean_run,
    logs_of,
)


async def test_a_clean_run_makes_sense() -> None:
    """Alerts validate, sequences rise by customer, bad records are dead letters, forgotten customers leave nothing."""
    logs = logs_of(seed=11)
    world = await clean_run(logs)
    alerts = [Alert.model_validate_json(value) for value in world.alerts().values()]
    assert {(a.state, a.cause) for a in alerts} >= {
        ("opened", "score"), ("resolved", "score"), ("resolved", "terminal"),
    }  # fmt: skip
    last: dict[str, int] = {}
    for message in world.sink.sent["alerts"]:
        assert message.key is not None
        if message.value is None:
            continue
        alert = Alert.model_validate_json(message.value)
        assert message.key == alert.customer.encode()
        assert alert.sequence > last.get(alert.customer, 0)
        last[alert.customer] = alert.sequence
        if alert.state == "opened":
            assert alert.reasons[0].feature == "silence"
            assert "no activity for" in alert.reasons[0].words
    bad = {
        ("not_json", r.offset)
        for log in logs
        for r in log
        if r.value is not None and not r.value.endswith(b"}")
    }
    assert {(reason, offset) for reason, _, offset in world.letters()} == bad
    tombstones = sum(record.value is None for log in logs for record in log)
    assert sum(m.value is None for m in world.sink.sent["alerts"]) == tombstones
    assert sum(m.value is None for m in world.sink.sent["dead"]) == tombstones


@pytest.mark.parametrize("seed", range(6))
async def test_faults_change_nothing(seed: int) -> None:
    """Five calls in a hundred fail, in every way there is, and the model fails now and then: the same end."""
    print(f"seed {seed}")
    logs = logs_of(seed=100 + seed)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.05)
    world.model.fail_next = 2
    await world.finish(world.worker())
    assert world.faults.drawn >= 10
    await assert_same_end(world, clean)


@pytest.mark.parametrize("seed", range(4))
async def test_owners_come_and_go(seed: int) -> None:
    """Workers are killed at random moments (no drain, no goodbye), and twice two of them own everything at once."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    logs = logs_of(seed=200 + seed)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.01)
    for _ in range(8):
        zombie = world.worker()
        tasks = [asyncio.create_task(zombie.run()), asyncio.create_task(world.source.pump(zombie.deliver))]
        await asyncio.sleep(0)
        zombie.assigned(world.source.assigned())
        await asyncio.sleep(float(rng.uniform(0.002, 0.03)))
        if rng.random() < 0.3:  # a second owner, while the first still works
            other = world.worker()
            tasks += [asyncio.create_task(other.run()), asyncio.create_task(world.source.pump(other.deliver))]
            await asyncio.sleep(0)
            other.assigned(world.source.assigned())
            await asyncio.sleep(float(rng.uniform(0.002, 0.03)))
            other.revoked(world.source.assigned())
        zombie.revoked(world.source.assigned())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        world.source.revoke()
    await world.finish(world.worker())
    await assert_same_end(world, clean)


async def test_somebody_else_seeks_under_an_owner() -> None:
    """A position that moves without its owner (a task that outlived its assignment) is noticed and sought back."""
    logs = logs_of(seed=14)
    clean = await clean_run(logs)
    world = World(3, logs, rate=0.0)

    async def meddle() -> None:
        for n in range(20):
            await asyncio.sleep(0.01)
            await world.source.seek(n % PARTITIONS, len(logs[n % PARTITIONS]) // (1 + n % 4))

    meddling = asyncio.create_task(meddle())
    await world.finish(world.worker())
    await meddling
    await assert_same_end(world, clean)


async def test_a_partition_of_bad_records_stops_alone() -> None:
    """A flood in one partition: it says why and stays; the others go on, and a drain still ends in good order."""
    logs = logs_of(seed=18, events=600)
    logs[1] = [LogRecord(n, T0 + n, b"x", b"nonsense") for n in range(2_000)]
    world = World(7, logs, rate=0.0)
    worker = world.worker(limits=replace(LIMITS, dead_letter_share_max=0.5))

    async def at(partition: int) -> int:
        checkpoint = await world.store.checkpoint(partition)
        return checkpoint.offset if checkpoint else 0

    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while await at(0) < len(logs[0]) or await at(2) < len(logs[2]) or not worker.not_ready_reasons:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        (trouble,) = worker.not_ready_reasons
        assert trouble.startswith("partition 1: it has stopped")
        assert "ebbtide dlq list" in trouble
        assert 0 < await at(1) < 1_000
        assert await worker.drain(1.0)


@pytest.mark.parametrize("seed", range(2))
async def test_a_row_that_no_model_can_score_loses_its_decision_only(seed: int) -> None:
    """Every thirteenth activity of anybody breaks the model: its event is folded, and a dead letter says so, once."""
    print(f"seed {seed}")
    logs = logs_of(seed=400 + seed)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.02)
    world.model = FussyModel(raises=[13], sizes=(8, 32))
    await world.finish(world.worker())
    broken, whole = await world.records(), await clean.records()
    assert broken.keys() == whole.keys()
    for customer, record in whole.items():
        ours, theirs = (np.frombuffer(bytearray(r), LAYOUT.dtype) for r in (broken[customer], record))
        for name in LAYOUT.dtype.names or ():
            if name not in EPISODE_FIELDS:
                assert ours[name].tobytes() == theirs[name].tobytes(), name
    lost = {letter for letter in world.letters() if letter[0] == "unscored"}
    assert world.letters() - lost == clean.letters()
    points: set[tuple[str, int, int]] = set()
    for partition, log in enumerate(logs):
        events = Parser(SPEC).parse(log).events
        _, found = Folder(LAYOUT).fold(LAYOUT.empty(len(events.customers)), events)
        bad = found.scored & (found.rows["activity_count"] == 13)
        points |= {("unscored", partition, int(at)) for at in events.position[found.event[bad]]}
    assert lost == points != set()
