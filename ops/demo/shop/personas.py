"""Who the simulated customers are, and how long each of them stays.

It knows what differs between people (their rhythm, its regularity, what they do, what they pay) and when a life with
us begins, fades and ends. It refuses to know events; `behaviour.py` makes them from this. The invariant: everything
here is latent. It reaches a reader of the events through their behaviour only, and an evaluation through the truth.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.ops.demo.shop.events import ADD_TO_CART, PAGE_VIEW, PLANS, PURCHASE, SEARCH, SUPPORT_TICKET

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
DAY_MS = 86_400_000
LIVES_MAX = 4
"""How often one person may join: of those who leave a tenth come back, so hardly anyone would have a fifth life."""
_BASE_MIX = {PAGE_VIEW: 55.0, SEARCH: 18.0, ADD_TO_CART: 14.0, PURCHASE: 9.0, SUPPORT_TICKET: 1.2}
_STEADY_BY_PLAN = np.array([0.8, 1.2, 1.6])
"""Who pays stays longer."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who, when and how they behave. Times in days unless the name ends in _ms."""

    seed: int
    customers: int
    start_ms: int
    days: float
    prefix: str = "c"
    """Customers are named `<prefix><number>`: give live and historical ones different names. Letters, digits, ._-"""
    joined_before: float = 0.6
    """Share of customers known before the span begins; the others join evenly through it."""
    gap_days: float = 3.2
    """Median over customers of the mean gap between visits."""
    gap_spread: float = 0.8
    """Sigma of its logarithm: how different the rhythms are."""
    visit_events: float = 4.5
    """Mean number of events in a visit."""
    steady_days: float = 80.0
    """Mean time until something turns in a life."""
    leave_at_once: float = 0.2
    """Share of turns that are a leave without notice."""
    recover: float = 0.15
    """Share of turns that are a fade which does not end in a leave."""
    fade_days: tuple[float, float] = (14.0, 42.0)
    """Shortest and longest fade."""
    closes: float = 0.12
    """Share of leaves that are said: `account_closed`."""
    comes_back: float = 0.12
    """Share of silent leaves after which the customer joins again, weeks later."""
    mailing_days: float = 1 / 48
    """How long it takes to send the weekly newsletter to everyone. From a day on, everyone has an hour of their own."""

    def __post_init__(self) -> None:
        if self.customers < 1 or self.days <= 0 or self.start_ms < 1:
            raise ValueError("a scenario needs customers, days and a start after 1970")
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,40}", self.prefix):
            raise ValueError(
                "a prefix has letters, digits, dots, dashes: names go into JSON and CSV as they are"
            )


@dataclass(frozen=True, slots=True)
class Personas:
    gap: F8  # mean days between visits
    regularity: F8  # gamma shape of the gaps: 1 has no memory, 6 keeps almost to the calendar
    shift: F8  # days by which the own day is earlier than the average one
    mix: F8  # [m, 5] weights of the activity types
    length: F8  # mean events of a visit
    basket: F8  # median purchase amount
    plan: I8  # code into PLANS


@dataclass(frozen=True, slots=True)
class Lives:
    """Days since 1970; fade_end is where the fade ends in a leave or a recovery, end where the life ends."""

    customer: I8
    begin: F8
    fade: F8
    fade_end: F8
    end: F8
    closed: NDArray[np.bool_]


def personas(s: Scenario, rng: np.random.Generator) -> Personas:
    m = s.customers
    base = np.array([_BASE_MIX[code] for code in sorted(_BASE_MIX)])
    return Personas(
        gap=np.clip(s.gap_days * np.exp(rng.normal(0, s.gap_spread, m)), 0.4, 11.0),
        regularity=np.clip(2.2 * np.exp(rng.normal(0, 0.5, m)), 0.6, 6.0),
        shift=rng.normal(0, 2.5 / 24, m),
        mix=base * np.exp(rng.normal(0, 0.45, (m, len(base)))),
        length=np.clip(s.visit_events * np.exp(rng.normal(0, 0.35, m)), 1.3, 20.0),
        basket=32.0 * np.exp(rng.normal(0, 0.6, m)),
        plan=rng.choice(len(PLANS), m, p=[0.55, 0.3, 0.15]),
    )


def lives(s: Scenario, who: Personas, rng: np.random.Generator) -> Lives:
    """Every customer's lives, in rounds: those who leave and come back are the next round."""
    start, stop = s.start_ms / DAY_MS, s.start_ms / DAY_MS + s.days
    customer = np.arange(s.customers)
    begin = np.where(
        rng.random(s.customers) < s.joined_before, start, start + s.days * rng.random(s.customers)
    )
    rounds: list[Lives] = []
    for _ in range(LIVES_MAX):
        k = len(customer)
        steady = s.steady_days * _STEADY_BY_PLAN[who.plan[customer]]
        turn = begin + rng.exponential(1.0, k) * steady
        kind = rng.random(k)
        at_once = kind < s.leave_at_once
        recovers = (kind >= s.leave_at_once) & (kind < s.leave_at_once + s.recover)
        lasts = np.where(at_once, 0.0, rng.uniform(*s.fade_days, k))
        fade_end = turn + lasts
        end = np.where(recovers, np.inf, fade_end)
        closed = (rng.random(k) < s.closes) & np.isfinite(end)
        rounds.append(Lives(customer, begin, turn, fade_end, end, closed))
        back = end + 20.0 + rng.exponential(25.0, k)
        returns = (rng.random(k) < s.comes_back) & ~closed & (back < stop)
        customer, begin = customer[returns], back[returns]
    parts = [np.concatenate(column) for column in zip(*(_columns(r) for r in rounds), strict=True)]
    order = np.lexsort((parts[1], parts[0]))
    return Lives(*(part[order] for part in parts))


def _columns(lives: Lives) -> tuple[NDArray[np.generic], ...]:
    return (lives.customer, lives.begin, lives.fade, lives.fade_end, lives.end, lives.closed)
