"""From contributions to reasons: what speaks loudest, a group of features at a time, in plain words.

Ten windows of one kind say one thing, so the features of a group are one reason, whose contribution is their sum. The
groups are the kinds by name, and

    silence    how long nothing came, and how long that is for this customer
    rhythm     how often they usually come             history    how long and how much they have been a customer
    sequence   the order and the pace of their last entries, which no feature says

A group is said by its template: the spec's own in `words`, or one of ours, or else the sentence of its loudest feature.
Templates are `str.format` ones, and every feature of the row can be named in them:

    words: {purchase: "kein Kauf seit {purchase_since:.0f} Tagen; davor {purchase_count_90d:.0f} in 90 Tagen"}

A feature's own sentence is changed under its name, with `{value}` for its figure.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.spec import Spec

SEQUENCE = "sequence"
SEQUENCE_WORDS = "the order and pace of what they did lately"
DAY_OLD = 1.0
"""Days: what is younger came today."""


class Said(NamedTuple):
    """A reason. feature: the loudest of the group in the reason's direction; of the sequence "sequence", with no
    value. contribution: the group's, logits."""

    group: str
    feature: str
    value: float | None
    contribution: float
    words: str


class Reasons:
    """The reasons of one spec. Raises SpecError for `words` that name nothing there is, or do not format."""

    def __init__(self, spec: Spec) -> None:
        self._features = features(spec)
        self._own = dict(spec.words)
        self._apart = spec.arms_apart  # the usual gap is one between activities
        self._at = {feature.name: i for i, feature in enumerate(self._features)}
        self.groups: tuple[str, ...] = (*dict.fromkeys(each.group for each in self._features), SEQUENCE)
        """In the order of the features; the sequence is the last."""
        self._group_of = np.array([self.groups.index(each.group) for each in self._features])
        self._features_of = [np.flatnonzero(self._group_of == g) for g in range(len(self.groups))]
        longest = max(spec.windows, key=lambda window: window.length_ms).words
        self._kinds = {kind.name: (kind, f"{kind.name}_count_{longest}", longest) for kind in spec.kinds}
        self._check()

    def top(
        self,
        values: NDArray[np.float32],
        contributions: NDArray[np.float32],
        sequence: float,
        towards: int,
        most: int,
    ) -> list[Said]:
        """The at most `most` groups that speak loudest in one direction (`towards` +1: for churn, -1: against it).

        values, contributions: float32[F] of one row; sequence: the sequence's contribution.
        """
        sums = np.bincount(self._group_of, contributions, len(self.groups)).tolist()
        sums[-1] = sequence
        towards_it = [g for g, each in enumerate(sums) if each * towards > 0]
        loudest = sorted(towards_it, key=lambda g: -towards * sums[g])[:most]
        return [self._said(g, sums[g], values, contributions, towards) for g in loudest]

    def words(self, group: str, feature: int, values: NDArray[np.float32]) -> str:
        """What a group says of a row; `feature`: the index of its loudest."""
        if group in self._own:
            return self._own[group].format(**self._named(values))
        if group == SEQUENCE:
            return SEQUENCE_WORDS
        if group in self._kinds and f"{group}_since" in self._at:
            return self._of_kind(group, feature, values)
        if group == "silence" and not self._apart and not self._value("gap_missing", values):
            return f"{self.sentence(0, values)}; before, one every {_days(self._value('gap_usual', values))}"
        return self.sentence(feature, values)

    def sentence(self, feature: int, values: NDArray[np.float32]) -> str:
        """One feature in words."""
        each, value = self._features[feature], float(values[feature])
        own = self._own.get(each.name)
        return each.describe(value) if own is None else own.format(value=value)

    def _of_kind(self, group: str, feature: int, values: NDArray[np.float32]) -> str:
        kind, counted, longest = self._kinds[group]
        if self._value(f"{group}_never", values):
            return (
                f"never any {kind.noun}"
                if f"{group}_never" not in self._own
                else self.sentence(self._at[f"{group}_never"], values)
            )
        since, count = self._value(f"{group}_since", values), self._value(counted, values)
        last = "the last one today" if since < DAY_OLD else f"the last one {_days(since)} ago"
        if count:
            said = f"{kind.said(count)} in the last {longest}, {last}"
        else:
            said = f"no {kind.noun} for {_days(since)}"
        # What its loudest feature says beside how many there were, and when.
        name = self._features[feature].name
        plain = name.startswith((f"{group}_count_", f"{group}_decay_")) or name in (
            f"{group}_since",
            f"{group}_never",
        )
        return said if plain else f"{self.sentence(feature, values)}; {said}"

    def _said(
        self,
        g: int,
        total: float,
        values: NDArray[np.float32],
        contributions: NDArray[np.float32],
        towards: int,
    ) -> Said:
        group = self.groups[g]
        if group == SEQUENCE:
            return Said(group, SEQUENCE, None, total, self.words(group, -1, values))
        own = self._features_of[g]
        loudest = int(own[np.argmax(contributions[own] * towards)])
        return Said(
            group,
            self._features[loudest].name,
            float(values[loudest]),
            total,
            self.words(group, loudest, values),
        )

    def _value(self, name: str, values: NDArray[np.float32]) -> float:
        return float(values[self._at[name]])

    def _named(self, values: Sequence[float] | NDArray[np.float32]) -> dict[str, float]:
        return {each.name: float(value) for each, value in zip(self._features, values, strict=True)}

    def _check(self) -> None:
        problems = []
        ones = np.ones(len(self._features), np.float32)
        for name, template in self._own.items():
            if name not in self._at and name not in self.groups:
                problems.append(f"{name} is no feature and no group ({', '.join(self.groups)})")
                continue
            try:
                if name in self.groups:
                    template.format(**self._named(ones))
                else:
                    template.format(value=1.0)
            except (LookupError, ValueError, AttributeError) as error:
                problems.append(f"{name}: {template!r} does not format: {error}")
        if problems:
            raise SpecError(
                f"words: {'; '.join(problems)}", hint="see `record/reasons.py` for what may be named"
            )


def _days(days: float) -> str:
    """As many figures as a reader wants."""
    return f"{days:.0f} days" if days >= 10 else f"{days:.1f} days"
