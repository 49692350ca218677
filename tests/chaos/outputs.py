"""What lies in the output topics, held against what should be said: alerts, scores, dead letters, nulls.

Two readers go through the alerts. One compares each with what the version that it names should say. The other obeys the
contract of `alert.py`, in offset order, and its belief in the end has to be the one that the expected alerts lead to:
an alert out of order is one that nobody hears. Where two versions decided otherwise of one customer (a state was lost,
and another version made it again) a consumer may rightly have heard the first and the record hold the second: such
customers are counted, and only their records are judged. Invariant: the topics are read after the last worker's end.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ebbtide.ops.config.settings import Settings
from ebbtide.stream.batch import Record
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.outputs.dead_letter import original_headers, parse_headers
from tests.chaos.consumer import AlertConsumer, Belief, ForgottenWatch
from tests.chaos.expected import Expected
from tests.chaos.feed import Acknowledged, checksum
from tests.chaos.scores import ScoresRead
from tests.chaos.verdict import Verdict


async def compare_outputs(
    verdict: Verdict, settings: Settings, expected: Expected, scores: ScoresRead, acknowledged: Acknowledged
) -> None:
    """Every output topic of one input topic. `settings`: the direct way to Kafka."""
    await _check_alerts(verdict, settings, expected, acknowledged)
    await _check_letters(verdict, settings, expected)
    _check_scores(verdict, expected, scores)


class Heard(NamedTuple):
    """An alert as it lies in its topic."""

    cause: str
    as_of: str
    offset: int
    timestamp: int


@dataclass
class _Alerts:
    """What is found in the alert topic."""

    expected: Expected
    consumer: AlertConsumer = field(default_factory=AlertConsumer)
    watch: ForgottenWatch = field(default_factory=ForgottenWatch)
    times: Counter[bytes] = field(default_factory=Counter)
    forgotten: Counter[bytes] = field(default_factory=Counter)
    # By position, too: forgotten in between, a customer may cross a threshold twice in a millisecond.
    times_at: dict[tuple[bytes, int, int], list[Heard]] = field(default_factory=lambda: defaultdict(list))
    bytes_by: dict[tuple[bytes, int, int, int], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    example: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    first_at: dict[tuple[int, int], int] = field(default_factory=dict)
    other: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    mixed: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    other_key: set[bytes] = field(default_factory=set)

    def read(self, record: Record) -> None:
        key = record.key or b""
        self.consumer.read(key, record.value)
        if record.value is None:
            self.forgotten[key] += 1
            self.watch.null(key, record.headers)
            return
        said = orjson.loads(record.value)
        identity, version, place = said["alert_id"].encode(), said["model_version"], said["decision"]
        self.times[identity] += 1
        if place["cause"] != "silence":  # which is told long after the activity where it lies
            self.first_at.setdefault((place["partition"], place["offset"]), record.timestamp)
        heard = Heard(place["cause"], place["as_of"], record.offset, record.timestamp)
        self.times_at[identity, place["partition"], place["offset"]].append(heard)
        self.bytes_by[identity, version, place["partition"], place["offset"]].add(record.value)
        self.watch.value(key, place["topic"], place["partition"], place["offset"])
        if key != said["customer"].encode():
            self.other_key.add(identity)
        should = self.expected.alerts.get(identity)
        if should is None:
            self.example[identity] = said
            return
        differs = _difference(said, should.by.get(version, []))
        if differs and "threshold" in differs:
            self.mixed[identity] = differs
        elif differs:
            self.other[identity] = differs


def _difference(said: dict[str, Any], should: list[dict[str, Any]]) -> dict[str, Any]:
    """Name -> (said, expected) of what differs from the first that it may say; nothing if it says one of them. None:
    the version named had no part in it."""
    if said in should:
        return {}
    if not should:
        return {"model_version": (said["model_version"], "another")}
    names = said.keys() | should[0].keys()
    return {n: (said.get(n), should[0].get(n)) for n in names if said.get(n) != should[0].get(n)}


async def _check_alerts(
    verdict: Verdict, settings: Settings, expected: Expected, acknowledged: Acknowledged
) -> None:
    found = _Alerts(expected)
    async for record in read_topic(settings.kafka, settings.topics.alerts):
        found.read(record)
    certain = {identity for identity, alert in expected.alerts.items() if alert.certain}
    verdict.figures["alerts"] = len(certain)
    verdict.figures["escalations"], verdict.figures["held_out"] = expected.escalations, expected.untold
    verdict.figures["alerts_uncertain"] = len(expected.alerts) - len(certain)
    # Of whom there were too many stories one was taken, and what follows from it proves nothing.
    known = {i for i in certain if expected.alerts[i].customer not in expected.lost_track}
    verdict.count("alerts_missing", sorted(known - found.times.keys()))
    unforeseen = [found.example[i] for i in sorted(found.times.keys() - expected.alerts.keys())]
    verdict.count("alerts_extra", [a for a in unforeseen if a["customer"] not in expected.lost_track])
    let_go = 0
    for name, differing in (("alerts_other_bytes", found.other), ("alerts_mixed_versions", found.mixed)):
        judged = [i for i in sorted(differing) if expected.alerts[i].customer not in expected.lost_track]
        verdict.count(name, [(i, differing[i]) for i in judged])
        let_go += len(differing) - len(judged)
    verdict.figures["alerts_of_lost_track"] = let_go
    verdict.count("alerts_changed", sorted(key for key, values in found.bytes_by.items() if len(values) > 1))
    verdict.count("alerts_other_key", sorted(found.other_key))
    twice = sorted((place, heard) for place, heard in found.times_at.items() if len(heard) > 1)
    verdict.figures["alerts_duplicated"] = sum(len(heard) - 1 for _, heard in twice)
    verdict.count("alerts_not_once", twice if settings.alerts.exactly_once else [])
    verdict.figures["model_versions_seen"] = len({version for _, version, _, _ in found.bytes_by})
    _check_nulls(verdict, expected, found.forgotten)
    verdict.count("alerts_behind_tombstone", found.watch.behind)
    _check_beliefs(verdict, expected, found.consumer)
    verdict.latencies = _latencies(acknowledged, found.first_at)


def _check_beliefs(verdict: Verdict, expected: Expected, consumer: AlertConsumer) -> None:
    """What a consumer heard too late, and what it believes in the end."""
    doubted = expected.ever_ambiguous
    unheard = [i for i in consumer.ignored if _customer(expected, i) not in doubted]
    verdict.count("alerts_out_of_order", unheard)
    verdict.figures["alerts_ignored_after_loss"] = len(consumer.ignored) - len(unheard)
    wrong: list[tuple[str, Belief | None, Belief | None]] = [
        (customer, consumer.beliefs.get(customer), expected.beliefs.get(customer))
        for customer in sorted(expected.beliefs.keys() | consumer.beliefs.keys())
        if customer not in expected.ambiguous
        and consumer.beliefs.get(customer) != expected.beliefs.get(customer)
    ]
    verdict.count("beliefs_wrong", wrong)
    verdict.figures["customers_ambiguous"] = len(doubted)
    verdict.figures["customers_lost_track_of"] = len(expected.lost_track)
    is_open = {
        customer for (_, customer), stories in expected.stories.items() if any(s.open for s in stories)
    }
    believed = {customer for customer, belief in expected.beliefs.items() if belief.open}
    verdict.figures["episodes_ended_unsaid"] = len(believed - is_open - expected.ambiguous)


def _customer(expected: Expected, identity: str) -> str:
    alert = expected.alerts.get(identity.encode())
    return alert.customer if alert else ""


def _latencies(acknowledged: Acknowledged, first_at: dict[tuple[int, int], int]) -> NDArray[np.float64]:
    """float64[n, 2]: when Kafka said that it has an event, ms UTC, and seconds from then to the first alert that it led
    to."""
    columns = (acknowledged.partition, acknowledged.offset, acknowledged.at_ms)
    known = zip(*(column.tolist() for column in columns), strict=True)
    took = [(ms, (first_at[p, offset] - ms) / 1000) for p, offset, ms in known if (p, offset) in first_at]
    return np.array(took, np.float64).reshape(-1, 2)


def _check_nulls(verdict: Verdict, expected: Expected, forgotten: Counter[bytes]) -> None:
    """Each tombstone was passed on to this topic, too."""
    verdict.count("tombstones_missing", [key for key, n in expected.tombstones.items() if forgotten[key] < n])


async def _check_letters(verdict: Verdict, settings: Settings, expected: Expected) -> None:
    times: Counter[tuple[int, int]] = Counter()
    wrong: list[tuple[int, int, str]] = []
    watch, forgotten = ForgottenWatch(), Counter[bytes]()
    async for record in read_topic(settings.kafka, settings.topics.dead_letters):
        letter = parse_headers(record.headers)
        if letter is None:
            if record.value is not None:
                wrong.append((-1, record.offset, "not a dead letter"))
            else:
                forgotten[record.key or b""] += 1
                watch.null(record.key or b"", record.headers)
            continue
        place = (letter.source.partition, letter.source.offset)
        times[place] += 1
        value = record.value if letter.has_value else None
        said = (letter.reason, checksum(record.key, value, original_headers(record.headers)))
        if expected.letters.get(place) != said:
            wrong.append((*place, letter.reason))
        watch.value(record.key or b"", letter.source.topic, *place)
    verdict.figures["dead_letters"] = len(expected.letters)
    _check_nulls(verdict, expected, forgotten)
    verdict.count("dead_letters_missing", sorted(expected.letters.keys() - times.keys()))
    verdict.count("dead_letters_wrong", wrong)
    verdict.count("dead_letters_behind_tombstone", watch.behind)
    verdict.figures["dead_letters_duplicated"] = sum(n - 1 for n in times.values())


def _check_scores(verdict: Verdict, expected: Expected, scores: ScoresRead) -> None:
    """Each scored point was said, with what the version named gives it, and nothing else was; and the last score of
    everybody is the last."""
    verdict.figures["scores"] = expected.points
    verdict.figures["points_by_timers"] = expected.timed
    _check_nulls(verdict, expected, scores.forgotten)
    verdict.figures["scores_duplicated"] = scores.duplicated
    verdict.count("scores_missing", expected.scores_missing)
    verdict.count("scores_wrong", [*expected.scores_wrong, *scores.odd])
    verdict.count("scores_extra", expected.scores_extra)
    verdict.count("scores_behind_tombstone", scores.watch.behind)
    latest = {customer: point for customer, (point, _) in scores.latest.items()}
    verdict.count(
        "scores_stale",
        [
            (customer, latest.get(customer), expected.latest.get(customer))
            for customer in sorted(latest.keys() | expected.latest.keys())
            if latest.get(customer) != expected.latest.get(customer)
        ],
    )
