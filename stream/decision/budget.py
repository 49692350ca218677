"""How many episodes may open in a stretch of event time: `enter` rises as that is used up.

    enter ▲ 1 ┤            ╭ nothing opens
              │          ╱
     the rule ┼────────╱            used of a partition's share ▶
              0      1/2      1

A limit a minute is shared out over the topic's partitions, since each counts for itself, in its checkpoint: so the
count moves with what it counts, in one commit. Where a share would be less than one alert, the stretch is as many
minutes as make it one. Stretches are of event time, each with its own count, and a checkpoint keeps the newest few: an
event with a time far ahead uses up another stretch than the present one. What is older than those kept counts in the
oldest of them, so that a catch-up is held to what it may say in the present.
"""

from typing import NamedTuple

from ebbtide.featurestore.store.checkpoint import BudgetSpent

MINUTE_MS = 60_000
STRETCHES_KEPT = 4
FREE_SHARE = 0.5
"""So much of a share is used before `enter` rises."""

Spent = BudgetSpent
"""(first minute of the stretch, openings in it), oldest first; as the checkpoint keeps it.

The minute, since a budget that is lowered has longer stretches: numbered one by one, those of before would lie ahead of
all that come, and the oldest of them would count every opening from then on."""


class Budget(NamedTuple):
    """`alerts_per_minute` openings of the whole topic, which has so many `partitions`."""

    alerts_per_minute: float
    partitions: int = 1

    @property
    def minutes(self) -> int:
        """Length of a stretch: the fewest whole minutes in which a partition's share is an alert."""
        return max(1, -int(-self.partitions // self.alerts_per_minute))

    @property
    def share(self) -> float:
        """Openings of a partition in a stretch, at least 1."""
        return self.alerts_per_minute * self.minutes / self.partitions

    def needed(self, enter: float, spent: Spent, as_of: int) -> float:
        """What p takes to open an episode as of then; above 1 when the budget is used up."""
        used = dict(spent).get(self._stretch(spent, as_of), 0)
        if used + 1 > self.share:
            return 2.0
        rise = max(0.0, used / self.share - FREE_SHARE) / (1.0 - FREE_SHARE)
        return enter + (1.0 - enter) * rise

    def take(self, spent: Spent, as_of: int) -> Spent:
        """One more opening as of then."""
        counts = dict(spent)
        stretch = self._stretch(spent, as_of)
        counts[stretch] = counts.get(stretch, 0) + 1
        return tuple(sorted(counts.items())[-STRETCHES_KEPT:])

    def _stretch(self, spent: Spent, as_of: int) -> int:
        stretch = as_of // (self.minutes * MINUTE_MS) * self.minutes
        return max(stretch, spent[0][0]) if len(spent) == STRETCHES_KEPT else stretch
