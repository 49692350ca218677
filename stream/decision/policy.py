"""What a policy is asked, and what it answers: the seam between the pipeline and whoever decides.

    points, their scores, the records ─▶ Policy.decide ─▶ transitions, in the order of the points
                                              └─ changes the policy's section of the records, and the budgets' counts

A policy is a pure fold: its state lies in the record's policy section and in the checkpoint, so it is as crash-proof as
the features, and a replay decides the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Rows
from ebbtide.stream.decision.budget import Spent
from ebbtide.stream.decision.rules import Rules

State = Literal["opened", "escalated", "resolved", "corrected"]
"""What became of an episode: it opened, reached a higher band, is over, or should not have been (a late event)."""
Cause = Literal["score", "terminal", "returned", "expired", "late_event"]
"""Why: the score; the customer left in so many words, came back after `memory`, or never did; an event that came late.
"""
Held = Literal["", "budget", "holdout"]
"""Why nobody is told: the budget is used up, and the episode does not open; or the customer is held out."""


class Transition(NamedTuple):
    """An episode that changed at `point` (index into the points).

    target: index into the spec's. band: index into the rules' bands, the highest of the episode. sequence: of the
    customer and target; 0 of an opening that the budget held back. held: why it is no alert, empty for one that is.
    """

    point: int
    target: int
    state: State
    cause: Cause
    band: int
    sequence: int
    held: Held = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """m points of customers of several partitions, with what is known of them.

    p: float32[m] or [m, targets] in [0, 1], ignored where a point is not scored; NaN where it could not be: nothing is
    decided there. time: int64[m], ms UTC, of the event that brought a point about, its `as_of` where time did. piece:
    int[m], index into `spent`, what each partition has used of its budget. customers: names, by the points' index.
    partitions: of the topic.
    """

    points: Points
    p: NDArray[np.float32]
    customers: Sequence[str]
    time: NDArray[np.int64]
    piece: NDArray[np.integer]
    spent: Sequence[Spent] = ((),)
    partitions: int = 1

    @classmethod
    def of_one(
        cls,
        points: Points,
        p: NDArray[np.float32],
        customers: Sequence[str],
        time: NDArray[np.int64] | None = None,
    ) -> Self:
        """Of points of one partition; without times, no event of theirs came late."""
        return cls(
            points, p, customers, points.as_of if time is None else time, np.zeros(len(points), np.int32)
        )

    @staticmethod
    def times(points: Points, events: EventBatch) -> NDArray[np.int64]:
        """`time` of points that the fold made of these events."""
        time = points.as_of.copy()
        brought = points.event >= 0
        time[brought] = events.time[points.event[brought]]
        return time


class Decided(NamedTuple):
    """Transitions in the order of their points; by piece, what of the budget is used then."""

    transitions: list[Transition]
    spent: list[Spent]


class Policy(Protocol):
    """Decides. Called on the event loop, once a turn; raises nothing; must be a function of what it is given."""

    @property
    def targets(self) -> Sequence[Rules]:
        """The rules of each target of the spec, as alerts quote them."""
        ...

    def holds_out(self, customer: str) -> bool:
        """Whether this customer is decided about, and nobody told."""
        ...

    def decide(self, asked: Asked, before: Rows, after: Rows) -> Decided:
        """Walk the points over the batch's customers. `before` are their records as loaded, `after` as folded. Only
        `EPISODE_FIELDS` of `after` change, in place; they start from `before`, because an end within the batch emptied
        them too early for the points that lie before it."""
        ...
