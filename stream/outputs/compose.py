"""From transitions to alerts in words: the one place that asks the model why.

Only rows that became alerts are explained, few of many; the explanation is a function of the row alone, so a replay
composes the same bytes. Who left, returned or expired was not scored, so there is nothing to explain. An alert whose
row the model cannot explain, or whose parts do not add up to what they explain, goes out all the same, without reasons:
that it happened matters more than why.
"""

import math
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
from ebbtide.stream.outputs.audit import audit_entry, row_sha256, rows_bytes
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
        chosen = np.array([t.point for t in transitions])
        decided = points.take(chosen)
        told = await self._explained(transitions, decided, scored)
        lost_ms = self._lost_ms(transitions, decided)
        raws = rows_bytes(decided.rows, self._layout)
        pieces, offsets = origin.piece[chosen].tolist(), origin.offset[chosen].tolist()
        customers, times = points.customer[chosen].tolist(), decided.as_of.tolist()
        horizon_days = self._layout.spec.horizon_ms / DAY_MS
        entries: dict[int, list[OutboxEntry]] = {}
        audits: dict[int, list[tuple[bytes, bytes]]] = {}
        for n, (t, is_scored, cause) in enumerate(
            zip(transitions, decided.scored.tolist(), decided.cause.tolist(), strict=True)
        ):
            piece, offset, as_of = pieces[n], offsets[n], times[n]
            opened = work.pieces[piece].opened
            customer, target = work.events.customers[customers[n]], self._targets[t.target]
            p = float(scored.of(t.point, t.target)) if is_scored else None
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
                horizon_days=horizon_days,
                lost_at=instant(lost_ms[n]) if lost_ms[n] else None,
                **told[n],
                model=scored.serving.name,
                model_version=scored.serving.version,
                layout=self._layout.id,
                row_sha256=None if p is None else row_sha256(raws[n], as_of),
                decision=Decision(
                    as_of=instant(as_of),
                    cause=CAUSES[cause],  # type: ignore[arg-type]  # RESET makes no transition
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
            if p is not None and self._audited:
                audits.setdefault(piece, []).append(
                    audit_entry(
                        alert.alert_id, customer, as_of, p, alert.model, alert.model_version, alert.layout,
                        self._platform, raws[n],
                    )
                )  # fmt: skip
        return Composed(entries, audits)

    def _lost_ms(self, transitions: list[Transition], decided: Points) -> list[int]:
        """By transition, ms UTC: when each customer is lost by the target's definition; 0 where no silence makes it so,
        and where there was none of the target's events yet."""
        spec = self._layout.spec
        last = self._folder.last_target(decided.rows)
        armed = last[np.arange(len(transitions)), [t.target for t in transitions]]
        absence = np.array([self._absence[t.target] for t in transitions])
        found: list[int] = np.where(
            (armed != 0) & absence, np.minimum(armed + spec.horizon_ms, TIME_MS_MAX), 0
        ).tolist()
        return found

    async def _explained(
        self, transitions: list[Transition], decided: Points, scored: Scored
    ) -> list[dict[str, Any]]:
        """By transition the alert's fields that the model has to be asked for again: `reasons`, none of a row that was
        not scored, that cannot be explained, or whose explanation does not add up; `survival`, `activity_in_days`."""
        told: list[dict[str, Any]] = [{"reasons": ()} for _ in transitions]
        asked = np.flatnonzero(decided.scored)
        if not len(asked):
            return told
        found = await self._batcher.explain(decided.rows[asked], decided.as_of[asked], scored.serving)
        for target in {t.target for t in transitions}:
            why = found.of_target(target)
            holds, when = why.holds.tolist(), self._when(why.survival, len(asked))
            for i, n in enumerate(asked.tolist()):
                t = transitions[n]
                if t.target != target:
                    continue
                towards = 1 if t.state in RISES else -1
                reasons = self._reasons_of.top(
                    why.values[i], why.contributions[i], float(why.sequence[i]), towards, REASONS_MAX
                ) if holds[i] else []  # fmt: skip
                told[n] = {"reasons": reasons_of(reasons), **when[i]}
        return told

    def _when(self, survival: NDArray[np.float32] | None, n: int) -> list[dict[str, Any]]:
        """Of n rows. survival: [n, K], NaN of a row that is not explained; None of a model that knows one horizon."""
        if survival is None:
            return [{}] * n
        horizons = self._layout.spec.horizons_ms
        known = np.asarray(np.isfinite(survival).all(axis=1)).tolist()
        days = np.stack([time_to_next_ms(horizons, survival, q) for q in QUANTILES], axis=1) / DAY_MS
        return [
            {
                "survival": tuple(
                    SurvivalAt(horizon_days=horizon / DAY_MS, probability=round(s, 6))
                    for horizon, s in zip(horizons, survival[i].tolist(), strict=True)
                ),
                "activity_in_days": ActivityIn.model_validate(
                    {
                        f"p{round(100 * quantile)}": round(day, 3) if math.isfinite(day) else None
                        for quantile, day in zip(QUANTILES, days[i].tolist(), strict=True)
                    }
                ),
            }
            if known[i]
            else {}
            for i in range(n)
        ]
