"""Which `enter` comes to so many alerts a day, or to the greatest gain: by trying, on the log."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit, logit

from ebbtide.model.judging.thresholds import HYSTERESIS, P_MIN
from ebbtide.ops.policy.report import Money
from ebbtide.ops.policy.simulate import PRIMARY, Decisions, Outcome
from ebbtide.stream.decision.episodes import EpisodePolicy

CANDIDATES = 24
STEPS = 12
"""Of bisection between two candidates: one in four thousand of their distance."""

Try = Callable[[EpisodePolicy], Outcome]


def at_enter(policy: EpisodePolicy, enter: float, *, keep_exit: bool) -> EpisodePolicy:
    """The policy with another `enter`: `exit` stays where it was said and fits, else it lies as far below as a model's
    own; bands that begin no higher are left out."""
    rules = policy.targets[PRIMARY]
    leave = rules.exit if keep_exit and rules.exit <= enter else float(expit(logit(enter) - HYSTERESIS))
    changed = rules.model_copy(
        update={
            "enter": enter,
            "exit": min(leave, enter),
            "bands": tuple(band for band in rules.bands if band.enter > enter),
        }
    )
    return replace(policy, targets=(changed, *policy.targets[1:]))


def candidates(decisions: Decisions, from_ms: int) -> list[float]:
    """Thresholds between which something changes, ascending: quantiles of customers' highest p."""
    points = decisions.points
    p = decisions.p[:, PRIMARY]
    chosen = points.scored & (points.as_of >= from_ms) & ~np.isnan(p)
    peaks = np.zeros(len(decisions.customers))
    np.maximum.at(peaks, points.customer[chosen], p[chosen])
    peaks = peaks[peaks > 0]
    if not len(peaks):
        return []
    steps = np.quantile(peaks, np.linspace(0.02, 0.995, CANDIDATES))
    return sorted({float(q) for q in np.clip(steps, P_MIN, 1 - P_MIN)})


def for_rate(tried: Sequence[Outcome], per_day: float, attempt: Callable[[float], Outcome]) -> Outcome | None:
    """The lowest `enter` that opens at most so many episodes a day; None where even the highest opens more.

    `tried`: by rising `enter`. `attempt`: one more.
    """
    below = next((n for n, found in enumerate(tried) if found.opened_per_day <= per_day), None)
    if below is None:
        return None
    best = tried[below]
    if below == 0:
        return best
    low, high = tried[below - 1].enter, best.enter
    for _ in range(STEPS):
        found = attempt((low + high) / 2)
        if found.opened_per_day <= per_day:
            best, high = found, found.enter
        else:
            low = found.enter
    return best


def for_gain(tried: Sequence[Outcome], money: Money) -> Outcome:
    """The one with the greatest expected gain; of equals the one with fewer alerts. `tried`: at least one."""
    return max(tried, key=lambda found: (money.of(found), -found.opened))
