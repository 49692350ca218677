"""From transitions to alerts in words: the one place that asks the model why.

Only rows that became alerts are explained, few of many; the explanation is a function of the row alone, so a replay
composes the same bytes. Who left explicitly was not scored, so there is nothing to explain. An alert whose row the
model cannot explain goes out all the same, without reasons: that it happened matters more than why.
"""

from typing import Protocol

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import EVENT, RESET, SILENCE, TERMINAL, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.stream.outputs.alert import Alert, Decision, Reason, alert_id, encode, instant, top_reasons
from ebbtide.stream.policy import Policy, Transition
from ebbtide.stream.scoring.batcher import Batcher, Scored

CAUSES = {EVENT: "event", SILENCE: "silence", TERMINAL: "terminal", RESET: "reset"}
"""A point's cause, as alerts, scores and metrics name it."""


class Serving(Protocol):
    """The model in service, as an alert names it, and the policy that goes with it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def policy(self) -> Policy: ...


class Composer:
    """Makes the alerts of one partition."""

    def __init__(self, topic: str, partition: int, layout: Layout, batcher: Batcher) -> None:
        self._topic, self._partition, self._layout, self._batcher = topic, partition, layout, batcher
        listed = features(layout.spec)
        self._names, self._say = [f.name for f in listed], [f.say for f in listed]

    async def compose(
        self,
        transitions: list[Transition],
        points: Points,
        scored: Scored,
        events: EventBatch,
        serving: Serving,
    ) -> list[tuple[bytes, bytes]]:
        """Outbox entries (alert id, encoded alert) of the transitions, in their order."""
        if not transitions:
            return []
        reasons = await self._reasons(
            [t for t in transitions if points.cause[t.point] != TERMINAL], points, scored
        )
        entries = []
        for t in transitions:
            customer = events.customers[points.customer[t.point]]
            left = points.cause[t.point] == TERMINAL
            alert = Alert(
                alert_id=alert_id(self._topic, customer, t.kind, t.sequence),
                customer=customer,
                sequence=t.sequence,
                transition=t.kind,
                probability=None if left else round(float(scored.p[t.point]), 6),
                threshold=serving.policy.enter,
                horizon_days=self._layout.spec.horizon_ms / DAY_MS,
                reasons=reasons.get(t.point, ()),
                model=serving.name,
                model_version=serving.version if left else int(scored.version[t.point]),
                layout=self._layout.id,
                decision=Decision(
                    as_of=instant(int(points.as_of[t.point])),
                    cause=CAUSES[int(points.cause[t.point])],  # type: ignore[arg-type]  # RESET makes no transition
                    topic=self._topic,
                    partition=self._partition,
                    offset=int(events.position[points.event[t.point]]),
                ),
            )
            entries.append((alert.alert_id.encode(), encode(alert)))
        return entries

    async def _reasons(
        self, transitions: list[Transition], points: Points, scored: Scored
    ) -> dict[int, tuple[Reason, ...]]:
        """By point; empty for one that cannot be explained, whose contributions are NaN and speak for nothing."""
        if not transitions:
            return {}
        chosen = [t.point for t in transitions]
        values, contributions = await self._batcher.explain(
            points.rows[chosen], points.as_of[chosen], scored.version[chosen]
        )
        return {
            t.point: top_reasons(
                self._names, self._say, values[n], contributions[n], 1 if t.kind == "opened" else -1
            )
            for n, t in enumerate(transitions)
        }
