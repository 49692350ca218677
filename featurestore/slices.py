"""Groups of customers that a spec names, by which a model is judged beside all of them together.

    slices:
      - {name: premium customers, kind: plan, is: premium}      a category of an attribute
      - {name: newcomers, tenure: [0d, 30d]}                     known for at least so long, and for less than so long

One that is large enough counts at the gate: a model that is worse than a baseline there is not published.
"""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from ebbtide.featurestore.kinds import Frozen, Kind
from ebbtide.featurestore.times.durations import DurationMs

SLICES_MAX = 16


class Slice(Frozen):
    """A category of an attribute kind, or a half-open band of tenure."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    kind: str | None = None
    category: str | None = Field(default=None, alias="is")
    tenure_ms: tuple[DurationMs, DurationMs] | None = Field(default=None, alias="tenure")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind is None) != (self.category is None):
            raise ValueError(f"slice {self.name}: kind and is go together")
        if (self.kind is None) == (self.tenure_ms is None):
            raise ValueError(f"slice {self.name}: give kind and is, or tenure")
        if self.tenure_ms is not None and self.tenure_ms[0] >= self.tenure_ms[1]:
            raise ValueError(f"slice {self.name}: tenure is [from, to], the first one shorter")
        return self


def problems_of(kinds: Sequence[Kind], slices: Sequence[Slice]) -> list[str]:
    """What of the slices does not fit the kinds."""
    categories = {kind.name: kind.categories for kind in kinds if kind.attribute == "category"}
    names = [each.name for each in slices]
    said = [f"slice {name} is named twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return said + [
        f"slice {each.name}: {each.category!r} is no category of an attribute {each.kind}"
        for each in slices
        if each.kind is not None and each.category not in categories.get(each.kind, ())
    ]
