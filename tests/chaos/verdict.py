"""What is there, held against what should be: every record, every alert, every dead letter, every acknowledged produce.

Everything is read from the servers after the last worker has ended; what lies in the output topics is looked at in
`outputs.py`. Invariant: nothing is sampled and nothing is forgiven; what may differ (an alert or a dead letter that is
there twice, a model's version) is counted by itself.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.store import TURNED_AWAY
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.reader import log_ranges
from tests.chaos.expected import Expected, without_episode
from tests.chaos.feed import Acknowledged
from tests.chaos.marks import moved_back
from tests.chaos.monitor import marks_of
from tests.chaos.tally import Tally
from tests.support.oracle.decisions import Story

DUE_PAGE = 1_000_000


@dataclass
class Verdict(Tally):
    """Of one topic, or of several. `latencies` float64[n, 2]: an event's acknowledgement, ms UTC, and seconds from then
    to its alert."""

    latencies: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))


async def compare(
    settings: Settings, expected: Expected, acknowledged: Acknowledged, *, compacted: bool = False
) -> Verdict:
    """The log, the state and the committed offsets of one topic. `settings`: the direct ways to Kafka and Redis."""
    verdict = Verdict()
    _check_log(verdict, expected, acknowledged, compacted)
    _check_poison(verdict, expected, acknowledged)
    layout = Layout(load_spec(settings.spec))
    ranges = await log_ranges(settings.kafka, settings.kafka.topic)
    async with open_store(settings, layout, len(ranges)) as store:
        await _check_store(verdict, store, expected, {p: end for p, (_, end) in ranges.items()})
    await _check_marks(verdict, settings, {p: end for p, (_, end) in ranges.items()})
    await _check_keys(verdict, settings, expected, len(ranges))
    return verdict


async def compare_state(settings: Settings, expected: Expected) -> Verdict:
    """The state and the committed offsets alone: of a topic that lost what it had acknowledged, nothing else follows
    from what is there."""
    verdict = Verdict()
    ranges = await log_ranges(settings.kafka, settings.kafka.topic)
    ends = {p: end for p, (_, end) in ranges.items()}
    async with open_store(settings, Layout(load_spec(settings.spec)), len(ranges)) as store:
        await _check_store(verdict, store, expected, ends)
    committed = await marks_of(settings.kafka.url, settings.kafka.group, settings.kafka.topic)
    verdict.count("marks_behind", _behind(committed, ends))
    await _check_keys(verdict, settings, expected, len(ranges))
    return verdict


def _behind(committed: dict[int, int], ends: dict[int, int]) -> list[tuple[int, int | None, int]]:
    return [(p, committed.get(p), end) for p, end in ends.items() if committed.get(p, 0) != end]


def _check_log(verdict: Verdict, expected: Expected, acknowledged: Acknowledged, compacted: bool) -> None:
    """What was acknowledged is where it was said to be; of a compacted topic, or has been superseded."""
    wrong = []
    columns = (acknowledged.partition, acknowledged.offset, acknowledged.checksum)
    for partition, offset, said in zip(*(column.tolist() for column in columns), strict=True):
        there = expected.sums[partition].get(offset)
        if there != said and not (compacted and there is None):
            wrong.append((partition, offset, "gone" if there is None else "other bytes"))
    verdict.count("acknowledged_missing", wrong)
    verdict.figures["log_records"] = expected.log_records


def _check_poison(verdict: Verdict, expected: Expected, acknowledged: Acknowledged) -> None:
    """The replay refuses what was made to be refused, and nothing else: by what the producers say, record for record.

    A batch that was acknowledged to nobody was sent again, so its records are there twice; the copies are known by
    their bytes. Of a compacted topic only what is still in the log can be judged.
    """
    columns = (acknowledged.partition, acknowledged.offset, acknowledged.checksum, acknowledged.poison)
    told = list(zip(*(column.tolist() for column in columns), strict=True))
    flagged = {(partition, offset): poison for partition, offset, _, poison in told}
    poisonous = {(partition, said) for partition, _, said, poison in told if poison}
    should = {
        (partition, offset)
        for partition, sums in expected.sums.items()
        for offset, said in sums.items()
        if flagged.get((partition, offset), (partition, said) in poisonous)
    }
    verdict.count("poison_misjudged", sorted(should ^ expected.letters.keys()))


async def _check_marks(verdict: Verdict, settings: Settings, ends: dict[int, int]) -> None:
    """What the group has committed is the end that a reader of committed records sees: behind the last transaction's
    marker, where the checkpoints are; and none of it ever moved back on the way there."""
    committed = await marks_of(settings.kafka.url, settings.kafka.group, settings.kafka.topic)
    verdict.count("marks_behind", _behind(committed, ends))
    verdict.count("marks_moved_back", await moved_back(settings.kafka))


async def _check_store(verdict: Verdict, store: Store, expected: Expected, ends: dict[int, int]) -> None:
    found: dict[tuple[int, str], bytes] = {}
    episodes: dict[tuple[int, str], dict[str, float]] = {}
    due: dict[tuple[int, str], int] = {}
    behind, outboxes = [], []
    for partition, end in ends.items():
        checkpoint = await store.checkpoint(partition)
        if (checkpoint.offset if checkpoint else 0) != end:
            behind.append((partition, checkpoint.offset if checkpoint else None, end))
        outboxes += [(partition, entry.id) for entry in await store.outbox(partition)]
        async for customers, rows in store.scan(partition):
            plain = without_episode(rows)
            for i, customer in enumerate(customers):
                found[partition, customer] = plain[i].tobytes()
                episodes[partition, customer] = {name: rows[name][i].item() for name in EPISODE_FIELDS}
        names, times = await store.due(partition, 2**53, DUE_PAGE)
        due |= {(partition, name): int(time) for name, time in zip(names, times, strict=True)}
    should = expected.records
    wrong = [key for key in should.keys() | found.keys() if should.get(key) != found.get(key)]
    verdict.count("records_mismatched", wrong)
    verdict.count("episodes_mismatched", _other_episodes(expected, episodes))
    verdict.figures["customers"] = len(should)
    verdict.count(
        "due_mismatched",
        [key for key in expected.due.keys() | due.keys() if expected.due.get(key) != due.get(key)],
    )
    verdict.count("heads_behind", behind)
    verdict.count("outbox_left", outboxes)


def _other_episodes(
    expected: Expected, found: dict[tuple[int, str], dict[str, float]]
) -> list[tuple[int, str, dict[str, Any]]]:
    """Customers whose episode is none of those that it may be, and in what it differs: (found, expected of one)."""
    wrong = []
    for (partition, customer), fields in found.items():
        stories = [story.fields for story in expected.stories.get((partition, customer), {Story()})]
        if fields not in stories and customer not in expected.lost_track:
            other = {n: (fields[n], stories[0][n]) for n in fields if fields[n] != stories[0][n]}
            wrong.append((partition, customer, other))
    return wrong


async def timers_of(settings: Settings) -> dict[int, TimerCursor]:
    """How far the timers of each partition came."""
    layout, partitions = Layout(load_spec(settings.spec)), settings.topics.partitions
    async with open_store(settings, layout, partitions) as store:
        checkpoints = {p: await store.checkpoint(p) for p in range(partitions)}
    return {p: checkpoint.timers for p, checkpoint in checkpoints.items() if checkpoint}


def check_timers(verdict: Verdict, expected: Expected, due_by_ms: int) -> None:
    """Nobody is left who was due by then, ms UTC: by how many ms they are late."""
    late = [(*place, due_by_ms - due) for place, due in expected.due.items() if due < due_by_ms]
    verdict.count("timers_late", late)


async def _check_keys(verdict: Verdict, settings: Settings, expected: Expected, partitions: int) -> None:
    """No key is there that nobody accounts for: a record without a due time would not be found by a scan."""
    assert settings.redis.url is not None
    prefix = f"{settings.redis.prefix}{settings.kafka.topic}:"
    with_state = {partition for partition, _ in expected.records}
    should = {f"{prefix}{{p{p}}}:checkpoint" for p in range(partitions)}
    should |= {f"{prefix}{{p{p}}}:{key}" for p in with_state for key in ("due", "risk")}
    should |= {f"{prefix}{{p{p}}}:hours" for p in range(partitions)}
    should |= {f"{prefix}{{p{p}}}:c:{customer}" for p, customer in expected.records}
    async with Redis.from_url(settings.redis.url) as redis:
        found = {key.decode() async for key in redis.scan_iter(match=f"{prefix}*", count=5_000)}
        lists: list[Any] = [await redis.zrange(f"{prefix}{{p{p}}}:risk", 0, -1) for p in range(partitions)]
    listed = {(p, name.decode()) for p, names in enumerate(lists) for name in names if name != TURNED_AWAY}
    verdict.count("keys_unexpected", sorted(found - should))
    verdict.count("risks_of_nobody", sorted(listed - expected.records.keys()))
