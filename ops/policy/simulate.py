"""A policy on a log: every decision point scored once, by the service's own fold and graph, and decided by the policy.

    log ─replay─▶ points ─score─▶ Decisions (columns, by time) ─policy─▶ transitions ─▶ Outcome: alerts, right, missed

Points are taken in the order of their times, as timers take silences in service. Customers are laid into partitions as
Kafka would, since a budget is shared out over them. What was decided before `from_ms` is not counted, but its episodes
are there.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Layout
from ebbtide.featurestore.record.replay import replay
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.dataset import History
from ebbtide.model.examples.labels import CHURNED, UNKNOWN
from ebbtide.ops.replay.outcomes import STILL_OPEN, alerting_of, foreseen, losses
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.policy import Asked, Decided, Transition
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.scoring.model import Model

PRIMARY = 0
"""Index of the target that a log is judged by."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """All decision points of a log, by time, with their scores; without records, which no policy reads."""

    points: Points
    p: NDArray[np.float32]
    """float32[n, targets]."""
    time: NDArray[np.int64]
    piece: NDArray[np.int32]
    customers: list[str]
    partitions: int
    episodes: np.dtype[Any]

    def decide(self, policy: EpisodePolicy) -> Decided:
        """What the policy makes of them."""
        asked = Asked(
            self.points,
            self.p,
            self.customers,
            self.time,
            self.piece,
            [()] * self.partitions,
            self.partitions,
        )
        rows = np.zeros(len(self.customers), self.episodes)
        return policy.decide(asked, rows, np.zeros_like(rows))


def score_log(history: History, model: Model, until_ms: int, partitions: int) -> Decisions:
    """Fold a log and score its decision points before `until_ms`."""
    layout, log = history.layout, history.log
    parts, scores = [], []
    for points in replay(layout, log, until_ms):
        p = np.zeros((len(points), len(layout.spec.target_names)), np.float32)
        chosen = np.flatnonzero(points.scored)
        if len(chosen):
            p[chosen] = model.score(points.rows[chosen], points.as_of[chosen]).reshape(len(chosen), -1)
        scores.append(p)
        parts.append((points.customer, points.as_of, points.cause, points.event))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[1], kind="stable")
    customer, as_of, cause, event = (column[order] for column in columns)
    points = Points(np.zeros(len(order), "V1"), customer, as_of, cause, event)
    keys = layout.spec.keys_of(log.customers)
    home = np.array([partition_for(key, partitions) for key in keys], np.int32)
    return Decisions(
        points, np.concatenate(scores)[order], Asked.times(points, log), home[customer], log.customers, partitions,
        _episodes(layout),
    )  # fmt: skip


def _episodes(layout: Layout) -> np.dtype[Any]:
    dtype = layout.dtype
    return np.dtype([(name, dtype[name].base, dtype[name].shape) for name in EPISODE_FIELDS])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy came to from `from_ms` to the end of what is known.

    enter: the policy's. days: of event time. opened: episodes that somebody was told of, each a contact. said: all
    alerts. held: decisions that nobody was told of, by why. known, right: of the opened with a known outcome. churners:
    the customers lost who came up for a decision in time; foreseen: of them, those an open episode knew of before they
    were lost. expected_right: of the opened, with the model's own p where the outcome is not known yet.
    """

    enter: float
    days: float
    opened: int
    said: Mapping[str, int]
    held: Mapping[str, int]
    known: int
    right: int
    lead_days_p50: float
    churners: int
    foreseen: int
    expected_right: float

    @property
    def opened_per_day(self) -> float:
        return self.opened / self.days if self.days > 0 else float("nan")

    @property
    def precision(self) -> float:
        return self.right / self.known if self.known else float("nan")

    @property
    def recall(self) -> float:
        return self.foreseen / self.churners if self.churners else float("nan")

    def gain(self, value: float, cost: float, saved: float = 1.0) -> float:
        """Of the contacts: the value of those who would have been lost, of whom the share `saved` stays, less what all
        contacts cost."""
        return value * saved * self.expected_right - cost * self.opened


@dataclass(frozen=True, slots=True)
class Truth:
    """What followed on a log from `from_ms` on, whatever a policy says: the customers who were lost and had come up for
    a decision in time, int32[n], since when, and when they were, int64[n] ms UTC."""

    history: History
    from_ms: int
    customer: NDArray[np.int32]
    since: NDArray[np.int64]
    lost: NDArray[np.int64]

    @classmethod
    def of(cls, decisions: Decisions, history: History, from_ms: int) -> Self:
        """Of a log and its decision points."""
        who, since, lost = losses(history, from_ms)
        asked = _asked_about(decisions, who, since, lost)
        return cls(history, from_ms, who[asked], since[asked], lost[asked])


def simulate(decisions: Decisions, policy: EpisodePolicy, truth: Truth) -> Outcome:
    """Decide all, and hold what was said of the spec's first target against what followed."""
    points, history = decisions.points, truth.history
    ours = [t for t in decisions.decide(policy).transitions if t.target == PRIMARY]
    counted = [t for t in ours if points.as_of[t.point] >= truth.from_ms]
    told = [t for t in counted if not t.held]
    first = np.array([t.point for t in told if t.state == "opened"], np.int64)
    customer, as_of = points.customer[first], points.as_of[first]
    alerts = alerting_of(history, customer, as_of)
    label = history.labeller.label(customer, as_of)
    p = decisions.p[first, PRIMARY].astype(np.float64)
    expected = np.where(label == UNKNOWN, p, label == CHURNED)
    knew = foreseen(truth.customer, truth.since, truth.lost, _spans(ours, points))
    return Outcome(
        enter=policy.targets[PRIMARY].enter,
        days=max(history.known_until_ms - truth.from_ms, 0) / DAY_MS,
        opened=len(first),
        said=Counter(t.state for t in told),
        held=Counter(str(t.held) for t in counted if t.held),
        known=alerts.known,
        right=alerts.right,
        lead_days_p50=alerts.lead_days_p50,
        churners=len(truth.customer),
        foreseen=int(knew.sum()),
        expected_right=float(expected.sum()),
    )


def _asked_about(
    decisions: Decisions, customer: NDArray[np.int32], since: NDArray[np.int64], lost: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """bool[n]: did each come up for a decision between then and when they were lost?"""
    points = decisions.points
    scored = points.scored
    order = np.lexsort((points.as_of[scored], points.customer[scored]))
    who, when = points.customer[scored][order], points.as_of[scored][order]
    first, last = np.searchsorted(who, customer, "left"), np.searchsorted(who, customer, "right")
    return np.array(
        [
            a + np.searchsorted(when[a:b], begin, "left") < a + np.searchsorted(when[a:b], end, "left")
            for a, b, begin, end in zip(first, last, since, lost, strict=True)
        ],
        np.bool_,
    )


def _spans(transitions: list[Transition], points: Points) -> dict[int, list[tuple[int, int]]]:
    """By customer: when each episode that somebody was told of opened, and when it was over."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for t in transitions:
        who, as_of = int(points.customer[t.point]), int(points.as_of[t.point])
        if t.held:
            continue
        if t.state == "opened":
            spans.setdefault(who, []).append((as_of, STILL_OPEN))
        elif t.state != "escalated" and who in spans:
            spans[who][-1] = (spans[who][-1][0], as_of)
    return spans
