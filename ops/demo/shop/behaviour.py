"""Simulated customers of an online shop: people with a rhythm of their own, some of whom lose interest.

It knows how such people behave, and refuses to know how they will be scored. The invariant: a pure function of its
scenario. Same seed, same events, on any machine with the same NumPy.

A customer is a *persona* (how often, how regularly, what, for how much) and one or several *lives* with us:

    joined ──────── steady rhythm ────────┬──── stays ─────────────────────────────▶
                                          ├──── leaves at once ─┤                 (silence, or account_closed)
                                          ├──── fades for weeks ── leaves ─┤      ... and may join again later
                                          └──── fades a little ── recovers ────────▶
    visits   │ │  │ │   │ │ │  │   │         │       │            │
    mix      views, searches, carts, purchases    purchases go first, tickets come, visits shorten

Visits are a renewal process: gamma gaps in *operational* time, of which a day passes in a day on average. Operational
time is then bent twice: by the fade (less of it passes as interest goes, none after the leave) and by the hours of
the week. Both bends are integrals of a rate, inverted in closed form, so everything is arrays and no event is looped
over. Why a fade and why personal rhythms: they make the problem honest. Six days of silence say nothing of
someone who comes every ten and everything of someone who comes daily, and a slow leave shows in what people do
before it shows in when.
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.ops.demo.shop.events import (
    ACCOUNT_CLOSED,
    ADD_TO_CART,
    EVENT,
    LIFE,
    NEWSLETTER,
    PLAN_CHANGED,
    PLANS,
    PURCHASE,
    SEARCH,
    SUPPORT_TICKET,
    Simulated,
)
from ebbtide.ops.demo.shop.personas import DAY_MS, F8, I8, Lives, Personas, Scenario, lives, personas

__all__ = ["Scenario", "simulate"]

# Rate of visits by hour of the week, Thursday 00:00 UTC first as the epoch's days are, mean 1.
_DAY_SHAPE = np.array([3, 2, 1, 1, 1, 2, 4, 7, 9, 10, 10, 11, 12, 11, 10, 10, 11, 13, 15, 17, 18, 15, 10, 6])
_WEEK_SHAPE = np.array([1.0, 0.95, 1.1, 1.25, 1.0, 0.9, 0.95])
_RATE = np.outer(_WEEK_SHAPE, _DAY_SHAPE).ravel()
_KNOTS = np.arange(169) / 24
_PASSED = np.concatenate([[0.0], np.cumsum(_RATE)]) * (7 / _RATE.sum())
FADE_END_RATE = 0.3
"""At the end of a fade a customer comes this much as often as before."""
TICKETS_UP = 7.0
"""How much more of what they do is complaints, at the end of a fade, on top of the usual share."""
NEWSLETTER_DAY = 5 + 9 / 24
"""Every Tuesday at nine: days after the Thursday of 1970-01-01."""


def _operational(day: F8) -> F8:
    """Operational days passed at a day since 1970, by the hours of the week alone."""
    week, rest = np.divmod(day, 7.0)
    return np.asarray(week * 7.0 + np.interp(rest, _KNOTS, _PASSED))


def _calendar(operational: F8) -> F8:
    """The day since 1970 at which so much operational time has passed."""
    week, rest = np.divmod(operational, 7.0)
    return np.asarray(week * 7.0 + np.interp(rest, _PASSED, _KNOTS))


def _visits(s: Scenario, who: Personas, them: Lives, rng: np.random.Generator) -> tuple[I8, F8]:
    """(life, day) of every visit of every life that lies in the span."""
    stop = s.start_ms / DAY_MS + s.days
    c = them.customer
    until = np.minimum(them.end, stop)
    origin, fade, fade_end, end = (
        _operational(day + who.shift[c]) for day in (them.begin, them.fade, them.fade_end, until)
    )
    # Enough gaps to fill the life even if they come out short: the mean number plus eight standard deviations.
    mean = (end - origin) / who.gap[c]
    count = np.ceil(mean + 8.0 * np.sqrt(mean / who.regularity[c]) + 12.0).astype(np.int64)
    life = np.repeat(np.arange(len(c)), count)
    gaps = rng.gamma(who.regularity[c][life]) * (who.gap[c] / who.regularity[c])[life]
    first = np.cumsum(count) - count
    # Someone known before is met in the middle of a gap; someone who joins is there at once.
    known = them.begin <= s.start_ms / DAY_MS
    gaps[first] = np.where(known, gaps[first] * rng.random(len(c)), 1e-4)
    passed = np.cumsum(gaps)
    passed -= (passed[first] - gaps[first])[life]

    # Undo the fade. Its rate falls as exp(-k x); after it, the rate is 1 again and the life ends or goes on.
    steady = (fade - origin)[life]
    lasts = (fade_end - fade)[life]
    k = -np.log(FADE_END_RATE) / np.maximum(lasts, 1e-9)
    within = (1 - np.exp(-k * lasts)) / k
    fading = np.clip(passed - steady, 0.0, within)
    stretched = -np.log1p(-np.minimum(fading * k, 1 - FADE_END_RATE)) / k
    bent = origin[life] + np.minimum(passed, steady) + stretched + np.maximum(passed - steady - within, 0.0)
    day = _calendar(bent) - who.shift[c][life]
    inside = (bent < end[life]) & (day < stop) & (day >= s.start_ms / DAY_MS)
    return life[inside], day[inside]


def _clicks(
    who: Personas, them: Lives, life: I8, day: F8, rng: np.random.Generator
) -> tuple[I8, NDArray[np.int64], F8, F8]:
    """(life, type, day, value) of all that happens in the visits, seconds apart, in the order of a funnel."""
    lasts = np.maximum(them.fade_end - them.fade, 1e-9)
    gone = (day - them.fade[life]) / lasts[life]
    gone = np.where((gone > 0) & (gone <= 1), gone, 0.0)  # share of the interest that is gone
    c = them.customer[life]
    count = 1 + rng.poisson((who.length[c] - 1) * (1 - 0.5 * gone))
    visit = np.repeat(np.arange(len(life)), count)

    weights = who.mix[c].copy()
    weights[:, SEARCH] *= 1 - 0.3 * gone
    weights[:, ADD_TO_CART] *= 1 - 0.7 * gone
    weights[:, PURCHASE] *= np.maximum(1 - 1.6 * gone, 0.03)  # gone well before the visits are
    weights[:, SUPPORT_TICKET] *= 1 + TICKETS_UP * gone
    edges = np.cumsum(weights, axis=1)
    edges /= edges[:, -1:]
    kind = (rng.random(len(visit))[:, None] > edges[visit, :-1]).sum(axis=1)
    order = np.lexsort((kind, visit))  # a visit looks, searches, fills the cart, pays, then complains
    kind = kind[order]

    pauses = np.exp(rng.normal(np.log(35.0), 0.8, len(visit))) / 86_400
    first = np.cumsum(count) - count
    pauses[first] = 0.0
    since = np.cumsum(pauses)
    when = day[visit] + since - since[first][visit]
    amount = np.round(who.basket[c][visit] * np.exp(rng.normal(0, 0.5, len(visit))), 2)
    return life[visit], kind, when, np.where(kind == PURCHASE, amount, np.nan)


def _plans(who: Personas, them: Lives, begins: F8, rng: np.random.Generator) -> tuple[I8, F8, F8]:
    """(life, day, plan) at each life's first visit, at an upgrade now and then, and at many a fade's downgrade."""
    life = np.flatnonzero(np.isfinite(begins))  # the others never came
    plan, first = who.plan[them.customer[life]], begins[life]
    turn, turned = them.fade[life], them.fade_end[life]
    higher = first + (turn - first) * rng.random(len(life))
    upgrade = (rng.random(len(life)) < 0.1) & (plan < len(PLANS) - 1) & (higher > first)
    lower = turn + (turned - turn) * rng.uniform(0.3, 0.9, len(life))
    downgrade = (rng.random(len(life)) < 0.35) & (plan > 0) & (turned > turn) & (lower > first)
    code = np.concatenate([plan, plan[upgrade] + 1, np.zeros(downgrade.sum())])
    day = np.concatenate([first, higher[upgrade], lower[downgrade]])
    return np.concatenate([life, life[upgrade], life[downgrade]]), day, code


def _newsletters(
    s: Scenario, seen: F8, them: Lives, rng: np.random.Generator
) -> tuple[NDArray[np.int64], F8]:
    """(customer, day): each week to every address there is, whether or not the customer is still with us."""
    start = s.start_ms / DAY_MS
    weeks = np.arange(np.floor(start / 7) * 7 + NEWSLETTER_DAY, start + s.days, 7.0)
    closed = np.full(s.customers, np.inf)
    closed[them.customer[them.closed]] = them.end[them.closed]
    place = rng.random((len(weeks), s.customers))  # in the queue of that week
    if s.mailing_days >= 1:
        place[:] = place[:1]
    day = weeks[:, None] + place * s.mailing_days
    sent = (day > seen) & (day < closed)
    return np.nonzero(sent)[1], day[sent]


def _truth(s: Scenario, them: Lives) -> NDArray[np.void]:
    stop = s.start_ms / DAY_MS + s.days
    truth = np.zeros(len(them.customer), LIFE)
    fades = (them.fade_end > them.fade) & (them.fade < stop)
    truth["customer"] = them.customer
    truth["joined_ms"] = them.begin * DAY_MS
    truth["fading_ms"] = np.where(fades, them.fade * DAY_MS, 0)
    recovered = fades & np.isinf(them.end) & (them.fade_end < stop)
    truth["recovered_ms"] = np.where(recovered, them.fade_end * DAY_MS, 0)
    truth["left_ms"] = np.where(them.end < stop, np.minimum(them.end, stop) * DAY_MS, 0)
    truth["closed"] = them.closed & (them.end < stop)
    return truth


def _part(
    s: Scenario, customer: I8, kind: I8 | int, day: F8, value: F8 | float, end: F8 | float
) -> NDArray[np.void]:
    """EVENT[n] of columns, less what lies outside the span or after the life's end."""
    start = s.start_ms / DAY_MS
    inside = (day >= start) & (day < np.minimum(end, start + s.days))
    events = np.empty(len(day), EVENT)
    events["time_ms"] = np.where(inside, day, start) * DAY_MS  # a day that never comes is infinite
    events["customer"], events["type"], events["value"] = customer, kind, value
    return events[inside]


def simulate(s: Scenario) -> Simulated:
    """All events of a scenario and, apart from them, the truth. A million events take about a second."""
    rng = np.random.default_rng(s.seed)
    who = personas(s, rng)
    them = lives(s, who, rng)
    life, day = _visits(s, who, them, rng)
    begins = np.full(len(them.customer), np.inf)
    np.minimum.at(begins, life, day)
    life, kind, when, value = _clicks(who, them, life, day, rng)
    plan_life, plan_day, plan = _plans(who, them, begins, rng)
    seen = np.full(s.customers, np.inf)
    np.minimum.at(seen, them.customer, begins)
    mailed, mail_day = _newsletters(s, seen, them, rng)
    leavers = np.flatnonzero(them.closed & np.isfinite(begins))

    of = them.customer
    parts = [
        _part(s, of[life], kind, when, value, them.end[life]),
        _part(s, of[plan_life], PLAN_CHANGED, plan_day, plan, them.end[plan_life]),
        _part(s, of[leavers], ACCOUNT_CLOSED, them.end[leavers], np.nan, np.inf),
        _part(s, mailed, NEWSLETTER, mail_day, np.nan, np.inf),
    ]
    events = np.concatenate(parts)
    events = events[np.lexsort((events["type"], events["customer"], events["time_ms"]))]
    width = len(str(s.customers - 1))
    names = tuple(f"{s.prefix}{number:0{width}d}" for number in range(s.customers))
    end_ms = s.start_ms + round(s.days * DAY_MS)
    return Simulated(f"{s.prefix}{s.seed}", s.start_ms, end_ms, events, names, _truth(s, them))
