"""What churn is: the events whose absence, or whose coming, within the horizon a spec calls churn.

    default                          no event of a kind with role activity
    targets: [{kinds: [purchase]}]   no purchase, while visits and all else are only features
    … churn_when: present            the events themselves are churn: a leave in so many words, a downgrade

Where churn is absence, silence is counted from the target's last event: other activity only adds points of its own.
The first of several targets is the *primary* one: it says who is eligible and how silent a customer is. Each further
one that is churn by absence arms a schedule of silences of its own beside it; every point is scored for all of them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from ebbtide.featurestore.kinds import Frozen, Kind, Name

TARGETS_MAX = 4
"""Each has a head, alerts and an evaluation of its own, and a time and a place in the record."""

ALL_ACTIVITY = "activity"
"""The name of the target of a spec that names none."""


class Condition(Frozen):
    """Which events of a kind count, by one of its values: above and below some numbers (strictly), or a category.

    `value` names one of the kind's `values`; left out, it is the only one. An event without it does not count."""

    value: str = ""
    above: float | None = None
    below: float | None = None
    category: str | None = Field(default=None, alias="is")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.above is None and self.below is None) == (self.category is None):
            raise ValueError("where: give above, below or both, or is: a category")
        return self

    @property
    def words(self) -> str:
        """The condition in plain words."""
        bounds = (("above", self.above), ("below", self.below))
        said = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{self.value or 'value'} {said or f'is {self.category}'}"


class Target(Frozen):
    """The events of some kinds, of any role, and which way they mean churn."""

    name: Name
    kinds: Annotated[tuple[str, ...], Field(min_length=1)]
    where: Condition | None = None
    churn_when: Literal["absent", "present"] = "absent"

    @property
    def words(self) -> str:
        """What a churned customer shows within the horizon: 'no purchase (amount above 0)'."""
        said = " or ".join(kind.replace("_", " ") for kind in self.kinds)
        said += f" ({self.where.words})" if self.where else ""
        return f"no {said}" if self.churn_when == "absent" else said


class TargetEvents(NamedTuple):
    """Which events are the target's, as the fold and the labels read it.

    kinds: uint8[K], 1 for those of the target     column: int64[K], the value that is compared, or -1
    low, high: float64[K], what it lies between, both excluded
    """

    kinds: NDArray[np.uint8]
    column: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def of(self, kind: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """bool[n] over events, their kinds [n] (a tombstone is of none) and values [n, C]."""
        known = kind < len(self.kinds)
        code = np.where(known, kind, 0)
        column = self.column[code]
        value = values[np.arange(len(kind)), np.maximum(column, 0)]
        within = (value > self.low[code]) & (value < self.high[code])
        chosen: NDArray[np.bool_] = known & (self.kinds[code] != 0) & ((column < 0) | within)
        return chosen


def target_events(kinds: Sequence[Kind], target: Target | None) -> TargetEvents:
    """Of a spec's kinds; None: all activity."""
    k = len(kinds)
    found = TargetEvents(np.zeros(k, np.uint8), np.full(k, -1), np.full(k, -np.inf), np.full(k, np.inf))
    for i, kind in enumerate(kinds):
        found.kinds[i] = kind.role == "activity" if target is None else kind.name in target.kinds
        if target is not None and target.where is not None and found.kinds[i]:
            found.column[i], found.low[i], found.high[i] = _bounds(kind, target.where)
    return found


def problems_of(kinds: Sequence[Kind], target: Target) -> list[str]:
    """What of a target does not fit the kinds."""
    by_name = {kind.name: kind for kind in kinds}
    said = [f"target {target.name}: there is no kind {name}" for name in target.kinds if name not in by_name]
    for name in target.kinds:
        if target.where is not None and name in by_name:
            try:
                _bounds(by_name[name], target.where)
            except ValueError as error:
                said.append(f"target {target.name}: {error}")
    return said


def _bounds(kind: Kind, where: Condition) -> tuple[int, float, float]:
    """Column, low and high. Raises ValueError."""
    columns = [c for c, value in enumerate(kind.readings) if where.value in ("", value.name)]
    if len(columns) != 1:
        raise ValueError(
            f"kind {kind.name} has {len(columns)} values that where could mean by {where.value!r}"
        )
    value = kind.readings[columns[0]]
    if where.category is None:
        return (
            columns[0],
            -np.inf if where.above is None else where.above,
            np.inf if where.below is None else where.below,
        )
    if where.category not in value.categories:
        raise ValueError(f"{where.category!r} is none of the categories of kind {kind.name}")
    code = 1 + value.categories.index(where.category)
    return columns[0], code - 0.5, code + 0.5
