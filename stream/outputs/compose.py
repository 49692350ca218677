"""From transitions to alerts in words: the one place that asks the model why.

Only rows that became alerts are explained, few of many; the explanation is a function of the row alone, so a replay
composes the same bytes. Who left, returned or expired was not scored, so there is nothing to explain. An alert whose
row the model cannot explain, or whose parts do not add up to what they explain, goes out all the same, without reasons:
that it happened matters more than why.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.contract import TIME_MS_MAX
from ebbtide.featurestore.record.fold import CAUSES, Folder, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.reasons import Reasons
from ebbtide.featurestore.store.commit import OutboxEntry
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.model.graph.hazard import QUANTILES, time_to_next_ms
from ebbtide.stream.decision.policy import Transition
from ebbtide.stream.outputs.alert import (
    REASONS_MAX,
    SCHEMA_VERSION,
    ActivityIn,
    Alert,
    Decision,
    SurvivalAt,
    alert_id,
    encode,
    logit_of,
    reasons_of,
)
from ebbtide.stream.outputs.audit import audit_entry, row_bytes, row_sha256
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.turn.work import Origin, Work

RISES = ("opened", "escalated")
"""States of an alert whose reasons speak for churn."""


class Composed(NamedTuple):
    """By piece: the alerts as outbox entries, in the order of decision, and what they were decided on."""

    alerts: dict[int, list[OutboxEntry]]
    audits: dict[int, list[tuple[bytes, bytes]]]


class Composer:
    """Makes the alerts of a topic's partitions, and, if `audited`, their audit records. `platform`: what these say of
    this process."""

    def __init__(
        self, topic: str, layout: Layout, batcher: Batcher, audited: bool = False, platform: str = ""
    ) -> None:
        self._topic, self._layout, self._batcher = topic, layout, batcher
        self._audited, self._platform = audited, platform
        spec = layout.spec
        self._folder, self._targets = Folder(layout), spec.target_names
        self._absence = [spec.only_target(t).churn_is_absence for t in range(len(spec.target_names))]
        self._reasons_of = Reasons(layout.spec)

    async def compose(
        self, work: Work, transitions: list[Transition], points: Points, origin: Origin, scored: Scored
    ) -> Composed:
        """Alerts of the transitions. Raises ScorerUnavailable."""
        if not transitions:
            return Composed({}, {})
        told = await self._explained([t for t in transitions if points.scored[t.point]], points, scored)
        lost_ms = self._lost_ms(transitions, points)
        entries: dict[int, list[OutboxEntry]] = {}
        audits: dict[int, list[tuple[bytes, bytes]]] = {}
        for n, t in enumerate(transitions):
            piece, offset = int(origin.piece[t.point]), int(origin.offset[t.point])
            opened = work.pieces[piece].opened
            customer, target = work.events.customers[points.customer[t.point]], self._targets[t.target]
            p = float(scored.of(t.point, t.target)) if points.scored[t.point] else None
            as_of = int(points.as_of[t.point])
            raw = None if p is None else row_bytes(points.rows[t.point], self._layout)
            band = scored.serving.policy.targets[t.target].band(t.band)
            alert = Alert(
                schema_version=SCHEMA_VERSION,
                alert_id=alert_id(self._topic, customer, target, t.state, t.sequence),
                customer=customer,
                target=target,
                sequence=t.sequence,
                state=t.state,
                cause=t.cause,
                band=band.name,
                probability=None if p is None else round(p, 6),
                logit=None if p is None else logit_of(p),
                threshold=band.enter,
                horizon_days=self._layout.spec.horizon_ms / DAY_MS,
                lost_at=instant(int(lost_ms[n])) if lost_ms[n] else None,
                **told.get((t.point, t.target), {"reasons": ()}),
                model=scored.serving.name,
                model_version=scored.serving.version,
                layout=self._layout.id,
                row_sha256=None if raw is None else row_sha256(raw, as_of),
                decision=Decision(
                    as_of=instant(as_of),
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
            if raw is not None and self._audited:
                audits.setdefault(piece, []).append(
                    audit_entry(
                        alert.alert_id, customer, as_of, scored.of(t.point, t.target), alert.model,
                        alert.model_version, alert.layout, self._platform, raw,
                    )
                )  # fmt: skip
        return Composed(entries, audits)

    def _lost_ms(self, transitions: list[Transition], points: Points) -> NDArray[np.int64]:
        """int64[transitions], ms UTC: when each customer is lost by the target's definition; 0 where no silence makes
        it so, and where there was none of the target's events yet."""
        spec = self._layout.spec
        last = self._folder.last_target(points.rows[[t.point for t in transitions]])
        armed = last[np.arange(len(transitions)), [t.target for t in transitions]]
        absence = np.array([self._absence[t.target] for t in transitions])
        return np.where((armed != 0) & absence, np.minimum(armed + spec.horizon_ms, TIME_MS_MAX), 0)

    async def _explained(
        self, transitions: list[Transition], points: Points, scored: Scored
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """By point and target the alert's fields that the model has to be asked for again: `reasons`, none of a row
        that cannot be explained, or whose explanation does not add up; `survival` and `activity_in_days`."""
        if not transitions:
            return {}
        chosen = [t.point for t in transitions]
        found = await self._batcher.explain(points.rows[chosen], points.as_of[chosen], scored.serving)
        told: dict[tuple[int, int], dict[str, Any]] = {}
        for n, t in enumerate(transitions):
            why = found.of_target(t.target).of(slice(n, n + 1))
            towards = 1 if t.state in RISES else -1
            reasons = self._reasons_of.top(
                why.values[0], why.contributions[0], float(why.sequence[0]), towards, REASONS_MAX
            ) if why.holds[0] else []  # fmt: skip
            told[t.point, t.target] = {"reasons": reasons_of(reasons), **self._when(why.survival)}
        return told

    def _when(self, survival: NDArray[np.float32] | None) -> dict[str, Any]:
        """survival: [1, K], NaN for a row that cannot be explained; None of a model that knows one horizon."""
        if survival is None or not np.isfinite(survival).all():
            return {}
        horizons = self._layout.spec.horizons_ms
        days = [float(time_to_next_ms(horizons, survival, quantile)[0]) / DAY_MS for quantile in QUANTILES]
        return {
            "survival": tuple(
                SurvivalAt(horizon_days=horizon / DAY_MS, probability=round(float(s), 6))
                for horizon, s in zip(horizons, survival[0], strict=True)
            ),
            "activity_in_days": ActivityIn.model_validate(
                {
                    f"p{round(100 * quantile)}": round(day, 3) if np.isfinite(day) else None
                    for quantile, day in zip(QUANTILES, days, strict=True)
                }
            ),
        }
