"""Who comes when and does what: sessions of a shop's customers, as columns. Seeded; the same seed, the same load.

sessions arrive   as a Poisson process: at any moment as likely as at any other
customers         few come often: popularity falls as rank^-0.8, and customer 0 is a hot key
within a session  a chain of kinds, a few seconds apart: views, a search, a basket, now and then a purchase
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KINDS = ("page_view", "search", "add_to_cart", "purchase")
STEPS = np.array(
    [
        [0.62, 0.18, 0.15, 0.05],
        [0.75, 0.15, 0.09, 0.01],
        [0.45, 0.10, 0.20, 0.25],
        [0.85, 0.10, 0.04, 0.01],
    ]
)
"""By kind: what follows it within the session."""
EVENTS_MEAN = 6.0
GAP_MEDIAN_S, GAP_SIGMA = 4.0, 1.0
POPULARITY = 0.8
AMOUNT_MEDIAN, AMOUNT_SIGMA = 35.0, 0.7


class Sessions(NamedTuple):
    """n events in order of time. at_s: float64[n] from the begin. customer: int64[n]. kind: int64[n], of KINDS. value:
    float64[n], of a purchase, else NaN."""

    at_s: NDArray[np.float64]
    customer: NDArray[np.int64]
    kind: NDArray[np.int64]
    value: NDArray[np.float64]


def sessions(seed: int, rate: float, seconds: float, customers: int) -> Sessions:
    """Events at `rate` a second on average, over `seconds`. It begins in full flow: sessions that began earlier are
    there, too."""
    rng = np.random.default_rng(seed)
    lead_s = 10 * EVENTS_MEAN * GAP_MEDIAN_S
    span_s = seconds + lead_s
    count = rng.poisson(rate / EVENTS_MEAN * span_s)
    begins = np.sort(rng.uniform(0.0, span_s, count))
    lengths = rng.geometric(1 / EVENTS_MEAN, count)
    weights = np.arange(1, customers + 1, dtype=np.float64) ** -POPULARITY
    who = rng.choice(customers, count, p=weights / weights.sum())
    session = np.repeat(np.arange(count), lengths)
    total = len(session)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    gaps = rng.lognormal(np.log(GAP_MEDIAN_S), GAP_SIGMA, total)
    gaps[first] = 0.0
    passed = np.cumsum(gaps)
    at_s = begins[session] + passed - passed[first][session]
    kind = _chain(rng, lengths, first, total)
    value: NDArray[np.float64] = np.where(
        kind == KINDS.index("purchase"), rng.lognormal(np.log(AMOUNT_MEDIAN), AMOUNT_SIGMA, total), np.nan
    )
    shown = np.flatnonzero((at_s >= lead_s) & (at_s < span_s))
    order = shown[np.argsort(at_s[shown], kind="stable")]
    return Sessions(
        at_s[order] - lead_s, who[session][order], kind[order], value[order].round(2).astype(np.float64)
    )


def _chain(
    rng: np.random.Generator, lengths: NDArray[np.int64], first: NDArray[np.int64], total: int
) -> NDArray[np.int64]:
    """Each session begins with a view; all sessions take their n-th step together."""
    kind = np.zeros(total, np.int64)
    cumulative, draws = np.cumsum(STEPS, axis=1), rng.uniform(size=total)
    for step in range(1, int(lengths.max(initial=0))):
        at = first[lengths > step] + step
        kind[at] = np.minimum((draws[at, None] > cumulative[kind[at - 1]]).sum(axis=1), len(KINDS) - 1)
    return kind
