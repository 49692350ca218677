"""Our policy: an episode a customer and target, a small state machine kept in the customer's record.

                      p >= enter, cool-down over
            ┌────────┐ ───────── opened ────────▶ ┌──────┐ ─┐ p reaches a higher band: escalated, once for each
       ────▶│ closed │                            │ open │◀─┘ p >= exit: the dwell starts again
            └────────┘ ◀── resolved: p < exit ─── └──────┘
                 ▲ ▲        for `dwell`, then      │  │
                 │ │        `cool-down`            │  │
                 │ └── corrected ──────────────────┘  │  an event from before the opening came late, and p < exit
                 └──── resolved ──────────────────────┘  they left explicitly, came back after `memory`, or expired

One open episode a customer and target, and none ends without a word: where `memory` has passed, it is resolved before
all is cleared. A tombstone clears it; the word is the null that is passed on. `sequence` is the decision's own time,
made strictly increasing, so that it keeps rising for a customer that was forgotten and came back.

Two things keep an alert from being sent. A *budget* that is used up holds an opening back: the episode does not open,
and the next point may. A customer of the *holdout* has episodes like everybody else, and nobody is told: an episode is
marked when it opens, so that none of which an opening was sent ends in silence, or the other way round.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.fold import EVENT, EXPIRED, RESET, RETURNED, TERMINAL
from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Rows
from ebbtide.stream.decision.budget import Budget, Spent
from ebbtide.stream.decision.holdout import NOBODY, Holdout
from ebbtide.stream.decision.policy import Asked, Cause, Decided, State, Transition
from ebbtide.stream.decision.rules import Rules

CLOSED, OPEN, HELD_OUT = 0, 1, 2
"""`episode_state`: HELD_OUT is open, and nobody was told."""
_ENDS: dict[int, Cause] = {TERMINAL: "terminal", RETURNED: "returned", EXPIRED: "expired"}


class Episode(NamedTuple):
    """An episode as the record keeps it. Times in ms UTC, 0 for never; `band`: the highest it reached."""

    opened_at: int = 0
    below_exit_at: int = 0
    cooldown_until: int = 0
    sequence: int = 0
    state: int = CLOSED
    band: int = 0

    def closed(self, cooldown_until: int) -> Self:
        """The same, over."""
        return self._replace(below_exit_at=0, cooldown_until=cooldown_until, state=CLOSED)


class At(NamedTuple):
    """A decision point: its cause, as of when (ms UTC), the time of its event, and p."""

    cause: int
    as_of: int
    time: int
    p: np.float32


def opens(episode: Episode, at: At, rules: Rules) -> bool:
    """Would an episode open here, were there no budget?"""
    return episode.state == CLOSED and bool(at.p >= rules.enter) and at.as_of >= episode.cooldown_until


def opened(episode: Episode, at: At, rules: Rules, state: int) -> Episode:
    """The episode that opens here."""
    return episode._replace(opened_at=at.as_of, below_exit_at=0, state=state, band=rules.band_of(at.p))


def passed(episode: Episode, at: At, rules: Rules) -> tuple[Episode, tuple[State, Cause] | None]:
    """An open episode after one more point, and what became of it."""
    if at.cause in _ENDS:
        return episode.closed(at.as_of + rules.cooldown_ms), ("resolved", _ENDS[at.cause])
    if at.p >= rules.exit:
        episode = episode._replace(below_exit_at=0)
        if (band := rules.band_of(at.p)) > episode.band:
            return episode._replace(band=band), ("escalated", "score")
        return episode, None
    if episode.below_exit_at == 0:
        if at.cause == EVENT and at.time < episode.opened_at:
            # Had this been known, nothing would have opened: so there is nothing to cool down from either.
            return episode.closed(episode.cooldown_until), ("corrected", "late_event")
        episode = episode._replace(below_exit_at=at.as_of)
    if at.as_of - episode.below_exit_at >= rules.dwell_ms:
        return episode.closed(at.as_of + rules.cooldown_ms), ("resolved", "score")
    return episode, None


class _Columns:
    """The policy's section of n records, written in place."""

    def __init__(self, rows: Rows) -> None:
        self._score, self._scored_at = rows["score"], rows["scored_at"]
        self._parts: list[NDArray[Any]] = [
            rows[name]
            for name in (
                "episode_opened_at", "below_exit_at", "cooldown_until", "sequence", "episode_state", "episode_band"
            )
        ]  # fmt: skip

    def episode(self, row: int, target: int) -> Episode:
        return Episode(*(part.item(row, target) for part in self._parts))

    def write(self, row: int, target: int, episode: Episode) -> None:
        for part, value in zip(self._parts, episode, strict=True):
            part[row, target] = value

    def score(self, row: int, at: int, p: NDArray[np.float32]) -> None:
        self._score[row], self._scored_at[row] = p, at

    def forget(self, row: int) -> None:
        self._score[row], self._scored_at[row] = 0.0, 0


@dataclass(frozen=True, slots=True)
class EpisodePolicy:
    """`targets`: the rules of each. `alerts_per_minute`: the budget, None for none."""

    targets: tuple[Rules, ...]
    alerts_per_minute: float | None = None
    holdout: Holdout = NOBODY

    @classmethod
    def of(cls, **rules: Any) -> Self:
        """Of one target, by the fields of its `Rules`; no budget, nobody held out."""
        return cls((Rules(**rules),))

    def holds_out(self, customer: str) -> bool:
        """As in `Policy`."""
        return self.holdout.holds(customer)

    def decide(self, asked: Asked, before: Rows, after: Rows) -> Decided:
        """As in `Policy`. Most points of most batches change nothing: those are done as columns, and only customers
        with something to decide are walked one by one."""
        points = asked.points
        p = asked.p if asked.p.ndim == 2 else asked.p[:, None]
        for name in EPISODE_FIELDS:
            after[name] = before[name]
        undecided = points.scored & np.isnan(p).any(axis=1)
        scored = points.scored & ~undecided
        enter = np.array([rules.enter for rules in self.targets], np.float32)
        busy = (
            (scored & (p >= enter).any(axis=1))
            | (points.cause > TERMINAL)
            | (after["episode_state"][points.customer] != CLOSED).any(axis=1)
        )
        walked = np.zeros(len(after), np.bool_)
        walked[points.customer[busy]] = True
        quiet = scored & ~walked[points.customer]
        # With several points of one customer the last assignment wins, as it has to.
        after["score"][points.customer[quiet]] = p[quiet]
        after["scored_at"][points.customer[quiet]] = points.as_of[quiet]
        walk = _Walk(self, asked, p, _Columns(after))
        for m in np.flatnonzero(walked[points.customer] & ~undecided).tolist():
            walk.point(m)
        return Decided(walk.transitions, walk.spent)


class _Walk:
    """The points of customers with something to decide, one by one."""

    def __init__(
        self, policy: EpisodePolicy, asked: Asked, p: NDArray[np.float32], columns: _Columns
    ) -> None:
        self._policy, self._asked, self._p, self._columns = policy, asked, p, columns
        limit = policy.alerts_per_minute
        self._budget = None if limit is None else Budget(limit, asked.partitions)
        self.spent: list[Spent] = list(asked.spent)
        self.transitions: list[Transition] = []

    def point(self, m: int) -> None:
        points = self._asked.points
        row, cause, as_of = int(points.customer[m]), int(points.cause[m]), int(points.as_of[m])
        if cause < TERMINAL:
            self._columns.score(row, as_of, self._p[m])
        if cause > TERMINAL:
            self._columns.forget(row)
        time = int(self._asked.time[m])
        for target, rules in enumerate(self._policy.targets):
            at = At(cause, as_of, time, self._p[m, target])
            episode = self._columns.episode(row, target)
            after = self._target(m, row, target, episode, at, rules)
            if cause > TERMINAL:  # what they do on their return is decided as of the very same time
                after = Episode(sequence=after.sequence if cause == RETURNED else 0)
            if after is not episode:
                self._columns.write(row, target, after)

    def _target(self, m: int, row: int, target: int, episode: Episode, at: At, rules: Rules) -> Episode:
        """One point of one target."""
        if at.cause == RESET:
            return episode
        if episode.state != CLOSED:
            silent = episode.state == HELD_OUT
            after, change = passed(episode, at, rules)
            if change is None:
                return after
            return self._say(m, target, after, at, *change, silent=silent)
        if at.cause >= TERMINAL or not opens(episode, at, rules):
            return episode
        silent = self._policy.holds_out(self._asked.customers[row])
        if self._budget is not None and not silent:
            piece = int(self._asked.piece[m])
            spent = self.spent[piece]
            if at.p < self._budget.needed(rules.enter, spent, at.as_of):
                band = rules.band_of(at.p)
                self.transitions.append(Transition(m, target, "opened", "score", band, 0, "budget"))
                return episode
            self.spent[piece] = self._budget.take(spent, at.as_of)
        after = opened(episode, at, rules, HELD_OUT if silent else OPEN)
        return self._say(m, target, after, at, "opened", "score", silent=silent)

    def _say(
        self, m: int, target: int, episode: Episode, at: At, state: State, cause: Cause, *, silent: bool
    ) -> Episode:
        sequence = max(episode.sequence + 1, at.as_of)
        self.transitions.append(
            Transition(m, target, state, cause, episode.band, sequence, "holdout" if silent else "")
        )
        return episode._replace(sequence=sequence)
