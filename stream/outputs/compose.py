"""From transitions to alerts in words: the one place that asks the model why.

Only rows that became alerts are explained, few of many; the explanation is a function of the row alone, so a replay
composes the same bytes. Who left, returned or expired was not scored, so there is nothing to explain. An alert whose
row the model cannot explain goes out all the same, without reasons: that it happened matters more than why.
"""

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import CAUSES, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.commit import OutboxEntry
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.stream.outputs.alert import Alert, Decision, Reason, alert_id, encode, top_reasons
from ebbtide.stream.policy import Transition
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.turn.work import Origin, Work


class Composer:
    """Makes the alerts of a topic's partitions."""

    def __init__(self, topic: str, layout: Layout, batcher: Batcher) -> None:
        self._topic, self._layout, self._batcher = topic, layout, batcher
        listed = features(layout.spec)
        self._names, self._describe = [f.name for f in listed], [f.describe for f in listed]

    async def compose(
        self, work: Work, transitions: list[Transition], points: Points, origin: Origin, scored: Scored
    ) -> dict[int, list[OutboxEntry]]:
        """Outbox entries of the transitions, by piece, in the order of decision. Raises ScorerUnavailable."""
        if not transitions:
            return {}
        reasons = await self._reasons([t for t in transitions if points.scored[t.point]], points, scored)
        entries: dict[int, list[OutboxEntry]] = {}
        for t in transitions:
            piece, offset = int(origin.piece[t.point]), int(origin.offset[t.point])
            opened = work.pieces[piece].opened
            customer = work.events.customers[points.customer[t.point]]
            alert = Alert(
                alert_id=alert_id(self._topic, customer, t.kind, t.sequence),
                customer=customer,
                sequence=t.sequence,
                transition=t.kind,
                probability=round(float(scored.p[t.point]), 6) if points.scored[t.point] else None,
                threshold=scored.serving.policy.enter,
                horizon_days=self._layout.spec.horizon_ms / DAY_MS,
                reasons=reasons.get(t.point, ()),
                model=scored.serving.name,
                model_version=scored.serving.version,
                layout=self._layout.id,
                decision=Decision(
                    as_of=instant(int(points.as_of[t.point])),
                    cause=CAUSES[int(points.cause[t.point])],  # type: ignore[arg-type]  # RESET makes no transition
                    topic=self._topic,
                    partition=opened.partition,
                    offset=offset if offset >= 0 else None,
                ),
            )
            entries.setdefault(piece, []).append(
                OutboxEntry(
                    alert.alert_id.encode(),
                    opened.checkpoint.sequence + 1,
                    customer.encode(),
                    encode(alert),
                )
            )
        return entries

    async def _reasons(
        self, transitions: list[Transition], points: Points, scored: Scored
    ) -> dict[int, tuple[Reason, ...]]:
        """By point; empty for one that cannot be explained, whose contributions are NaN and speak for nothing."""
        if not transitions:
            return {}
        chosen = [t.point for t in transitions]
        values, contributions = await self._batcher.explain(
            points.rows[chosen], points.as_of[chosen], scored.serving
        )
        return {
            t.point: top_reasons(
                self._names, self._describe, values[n], contributions[n], 1 if t.kind == "opened" else -1
            )
            for n, t in enumerate(transitions)
        }
