"""Send a schedule, follow what comes out, and compare: `run(settings, schedule)` against whatever serves the topic.

schedule ─▶ due now? ─▶ Kafka ─▶ workers ─▶ alerts, scores ─▶ as_of = when it was due ─▶ latency
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import orjson

from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from ebbtide.featurestore.times.timestamps import epoch_ms
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.load.latency import Latency, latency
from ebbtide.ops.load.sessions import KINDS, Sessions
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.clock import Clock
from ebbtide.stream.ending import end
from ebbtide.stream.errors import BrokerUnavailable
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.outputs.scores import read_score
from ebbtide.stream.outputs.versions import read_alert

TICK_S = 0.005
CHUNK_EVENTS = 500
IN_FLIGHT_MAX = 64
"""Chunks that may wait for Kafka; beyond that the schedule falls behind, which is measured."""
SETTLE_S = 5.0
PAST_EVENTS, PAST_BEGINS_MS, PAST_EVERY_MS = 6, 15 * DAY_MS // 2, HOUR_MS
"""Just beyond the demo's least tenure: whoever is decided about before their first event here opens an episode by
silence, of which no latency tells."""
PAST_S_MAX, PAST_STILL_S_MAX = 120.0, 60.0
"""For the workers to work the past off, and for nothing of it to be: a first worker loads its model meanwhile."""
FOLLOWING_S_MAX = 60.0
"""To find a topic's end takes a few questions; without a bound, a broker that leaves one unanswered hangs the run."""
RETRY_S, RETRIED_S_MAX = 0.5, 60.0

Progress = Callable[[int, int, float], None]
"""Told how many events were sent, how many alerts came, and the last latency, seconds."""


@dataclass(slots=True)
class Outcome:
    """What was sent and what came of it. late_s: how long after its time each chunk left. alerts_s, scores_s: latencies
    by events, of alerts and of the score topic. opened, scored: by customer, how many alerts opened an episode, and how
    many scores of events there were. repeated: alerts that came more than once. customers: who sent something."""

    sent: int = 0
    seconds: float = 0.0
    late_s: list[float] = field(default_factory=list)
    alerts_s: list[float] = field(default_factory=list)
    scores_s: list[float] = field(default_factory=list)
    customers: int = 0
    opened: dict[str, int] = field(default_factory=dict)
    scored: dict[str, int] = field(default_factory=dict)
    alerts: int = 0
    repeated: int = 0

    def alert_latency(self) -> Latency:
        return latency(self.alerts_s)

    def score_latency(self) -> Latency:
        return latency(self.scores_s)


class LoadRun:
    """One run. `outcome` grows while it lasts. name: of this run, before each customer's, so that two do not mix."""

    def __init__(self, settings: Settings, schedule: Sessions, name: str, clock: Clock) -> None:
        self._settings, self._schedule, self._name, self._clock = settings, schedule, name, clock
        self.outcome = Outcome()
        self._ids: set[str] = set()
        self._begin_ms = 2**62

    async def run(self, progress: Progress = lambda *_: None, settle_s: float = SETTLE_S) -> Outcome:
        """Send all of it, then wait for what is under way. Raises BrokerUnavailable."""
        ready = asyncio.Event()
        following: list[asyncio.Task[None]] = [asyncio.create_task(self._follow_alerts(ready), name="alerts")]
        if self._settings.topics.scores is not None:
            following.append(asyncio.create_task(self._follow_scores(), name="scores"))
        waiting = asyncio.create_task(ready.wait(), name="ready")
        try:
            done, _ = await asyncio.wait(
                {waiting, *following}, timeout=FOLLOWING_S_MAX, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise BrokerUnavailable(
                    f"the end of {self._settings.topics.alerts!r} is not known within {FOLLOWING_S_MAX:.0f} s",
                    hint="look at the broker's log: does every partition of it have a leader?",
                )
            for follower in following:
                if follower.done():
                    follower.result()
            await self._send_past()
            self._begin_ms = self._clock.now_ms()
            await self._send(progress)
            await self._settle(settle_s, progress)
        finally:
            await end([waiting, *following])
        return self.outcome

    async def _send(self, progress: Progress) -> None:
        at_s, total, begin_s = self._schedule.at_s, len(self._schedule.at_s), self._clock.monotonic_s()
        places, sending = asyncio.Semaphore(IN_FLIGHT_MAX), set[asyncio.Task[None]]()
        async with KafkaSink(self._settings.kafka) as sink:

            async def out(messages: list[Message]) -> None:
                """A broker that is away is waited for: the same events again are known by their ids."""
                give_up_s = self._clock.monotonic_s() + RETRIED_S_MAX
                try:
                    while True:
                        try:
                            return await sink.send_all(messages)
                        except BrokerUnavailable:
                            if self._clock.monotonic_s() > give_up_s:
                                raise
                        await asyncio.sleep(RETRY_S)
                finally:
                    places.release()

            while self.outcome.sent < total:
                now_s, first = self._clock.monotonic_s() - begin_s, self.outcome.sent
                due = int(at_s.searchsorted(now_s, side="right"))
                if due == first:
                    await asyncio.sleep(TICK_S)
                    continue
                end = min(due, first + CHUNK_EVENTS)
                await places.acquire()
                self.outcome.late_s.append(self._clock.monotonic_s() - begin_s - float(at_s[first]))
                messages = [self._message(i) for i in range(first, end)]
                task = asyncio.create_task(out(messages), name="out")
                sending.add(task)
                self.outcome.sent = end
                for done in [each for each in sending if each.done()]:
                    sending.discard(done)
                    done.result()
                progress(end, self.outcome.alerts, (self.outcome.alerts_s or [0.0])[-1])
                await asyncio.sleep(0)
            await asyncio.gather(*sending)
        self.outcome.seconds = self._clock.monotonic_s() - begin_s

    async def _send_past(self) -> None:
        """What each customer did before, and wait until the group has committed it."""
        who = [f"{self._name}-{c}" for c in sorted(set(self._schedule.customer.tolist()))]
        self.outcome.customers = len(who)
        now_ms = self._clock.now_ms()
        first_ms = now_ms - PAST_BEGINS_MS
        async with KafkaSink(self._settings.kafka) as sink:
            for at in range(0, len(who), CHUNK_EVENTS):
                past = [
                    self._of(name, f"past-{name}-{n}", KINDS[0], first_ms + n * PAST_EVERY_MS, now_ms)
                    for name in who[at : at + CHUNK_EVENTS]
                    for n in range(PAST_EVENTS)
                ]
                await sink.send_all(past)
        begin_s = moved_s = self._clock.monotonic_s()
        before: dict[int, int] = {}
        async with open_committed_log(self._settings.kafka) as log:
            ends = {number: end for number, (begin, end) in (await log.ranges()).items() if end > begin}
            while behind := _behind(ends, await log.committed()):
                now_s = self._clock.monotonic_s()
                if behind != before:
                    before, moved_s = behind, now_s
                if now_s > min(begin_s + PAST_S_MAX, moved_s + PAST_STILL_S_MAX):
                    raise BrokerUnavailable(
                        f"group {self._settings.kafka.group!r} has not worked off the past within"
                        f" {now_s - begin_s:.0f} s: records behind by partition: {behind}",
                        hint="does a worker run, and is it ready?",
                    )
                await asyncio.sleep(0.25)

    def _of(self, who: str, identity: str, kind: str, ts: int, at_ms: int) -> Message:
        body = {"user_id": who, "event_id": identity, "type": kind, "ts": ts}
        return Message(self._settings.kafka.topic, who.encode(), orjson.dumps(body), (), at_ms)

    def _message(self, i: int) -> Message:
        """The i-th event: its time is when it is due, and so is its Kafka timestamp."""
        s = self._schedule
        due_ms, who = self._begin_ms + int(s.at_s[i] * 1000), f"{self._name}-{s.customer[i]}"
        body = {"user_id": who, "event_id": f"{self._name}-{i}", "type": KINDS[s.kind[i]], "ts": due_ms}
        if s.value[i] == s.value[i]:
            body["value"] = float(s.value[i])
        return Message(self._settings.kafka.topic, who.encode(), orjson.dumps(body), (), due_ms)

    async def _follow_alerts(self, ready: asyncio.Event) -> None:
        async for record in read_topic(
            self._settings.kafka, self._settings.topics.alerts, follow=True, following=ready
        ):
            if record.value is None or not (record.key or b"").startswith(self._name.encode()):
                continue
            alert = read_alert(record.value)
            if alert.alert_id in self._ids:
                self.outcome.repeated += 1
                continue
            self._ids.add(alert.alert_id)
            self.outcome.alerts += 1
            if alert.state == "opened":
                self.outcome.opened[alert.customer] = self.outcome.opened.get(alert.customer, 0) + 1
            as_of_ms = epoch_ms(alert.decision.as_of)
            if alert.decision.cause == "event" and as_of_ms >= self._begin_ms:
                self.outcome.alerts_s.append((self._clock.now_ms() - as_of_ms) / 1000)

    async def _follow_scores(self) -> None:
        assert self._settings.topics.scores is not None
        async for record in read_topic(self._settings.kafka, self._settings.topics.scores, follow=True):
            if record.value is not None and (record.key or b"").startswith(self._name.encode()):
                score = read_score(record.value)
                if score.cause == "event" and score.as_of >= self._begin_ms:
                    self.outcome.scored[score.customer] = self.outcome.scored.get(score.customer, 0) + 1
                    self.outcome.scores_s.append((self._clock.now_ms() - score.as_of) / 1000)

    async def _settle(self, settle_s: float, progress: Progress) -> None:
        """Until each customer has been scored, `settle_s` at most: a partition may stand still for longer than others
        take. Without a score topic, until nothing has come for a second."""
        end_s, outcome, before = self._clock.monotonic_s() + settle_s, self.outcome, -1
        counted = self._settings.topics.scores is not None
        while self._clock.monotonic_s() < end_s:
            now = outcome.alerts + len(outcome.scores_s)
            if now == before and (not counted or len(outcome.scored) >= outcome.customers):
                return
            before = now
            await asyncio.sleep(1.0)
            progress(outcome.sent, outcome.alerts, (outcome.alerts_s or [0.0])[-1])


def _behind(ends: Mapping[int, int], committed: Mapping[int, CommittedOffset]) -> dict[int, int]:
    """By partition that is not at its end: how many records are left."""
    left = {
        number: end - (committed[number].offset if number in committed else 0) for number, end in ends.items()
    }
    return {number: n for number, n in left.items() if n > 0}
