"""The two objectives, latency and loss, as recording rules and multi-window burn-rate alerts.

    burn rate = share of bad / what the objective allows; at 1 the budget of 30 days lasts 30 days

    page      14.4 over 1 h, and still over 5 m      2 % of the budget in an hour
    page      6    over 6 h, and still over 30 m     5 % in six hours
    ticket    1    over 3 d, and still over 6 h      10 % in three days

Two windows each: the long one says that it matters, the short one that it still goes on, so an alert ends soon after
its cause. An alert on a handful of events says nothing: the long window must hold `COUNT_MIN` of them.
"""

from typing import Any, NamedTuple

from ebbtide.ops.alerting.duration import Scale

HOUR_S, DAY_S = 3600.0, 86_400.0
LATENCY_GOOD_S = "0.5"
"""The bucket of what is in time: from Kafka's timestamp of the record to the acknowledged alert."""
COUNT_MIN = 20


class Objective(NamedTuple):
    """share: of what is good. bad, all: expressions of a window `{w}`, how many were bad, and how many there were."""

    name: str
    share: float
    bad: str
    all: str
    words: str


LATENCY = Objective(
    "latency",
    0.99,
    "sum(increase(ebbtide_alert_latency_seconds_count[{w}]))"
    f' - sum(increase(ebbtide_alert_latency_seconds_bucket{{{{le="{LATENCY_GOOD_S}"}}}}[{{w}}]))',
    "sum(increase(ebbtide_alert_latency_seconds_count[{w}]))",
    f"99 % of alerts are acknowledged within {LATENCY_GOOD_S} s of their record's arrival in Kafka",
)
LOSS = Objective(
    "loss",
    0.999,
    "sum(increase(ebbtide_dead_letters_total[{w}]))",
    "sum(increase(ebbtide_records_total[{w}]))",
    "99.9 % of records are folded and decided, and no dead letters",
)
OBJECTIVES = (LATENCY, LOSS)


class Burn(NamedTuple):
    """rate: the burn rate that is too much over both windows, in seconds."""

    rate: float
    long_s: float
    short_s: float
    severity: str


BURNS = (
    Burn(14.4, HOUR_S, HOUR_S / 12, "page"),
    Burn(6.0, 6 * HOUR_S, HOUR_S / 2, "page"),
    Burn(1.0, 3 * DAY_S, 6 * HOUR_S, "ticket"),
)


def recorded(objective: Objective, window_s: float, what: str = "bad") -> str:
    """The name of a recorded series: its window is what it is in production, whatever the scale."""
    label = f"{window_s / DAY_S:g}d" if window_s >= DAY_S else f"{window_s / 60:g}m"
    return f"ebbtide:{objective.name}_{what}:increase{label}"


def recording_rules(scale: Scale) -> list[dict[str, Any]]:
    """How many were bad, and how many there were, over every window that an alert looks at."""
    windows = sorted({s for burn in BURNS for s in (burn.long_s, burn.short_s)})
    return [
        {"record": recorded(o, s, what), "expr": expression.format(w=scale.window(s))}
        for o in OBJECTIVES
        for s in windows
        for what, expression in (("bad", o.bad), ("all", o.all))
    ]


def burn_alerts() -> list[dict[str, Any]]:
    """One alert for each objective and pair of windows, all of an objective under one name."""
    return [_alert(objective, burn) for objective in OBJECTIVES for burn in BURNS]


def _alert(o: Objective, burn: Burn) -> dict[str, Any]:
    allowed = f"{burn.rate:g} * {1 - o.share:g}"
    tests = [f"{recorded(o, s)} > {allowed} * {recorded(o, s, 'all')}" for s in (burn.long_s, burn.short_s)]
    tests.append(f"{recorded(o, burn.long_s, 'all')} >= {COUNT_MIN}")
    return {
        "alert": f"Ebbtide{o.name.title()}Budget",
        "expr": "\nand ".join(tests),
        "labels": {"severity": burn.severity, "burn": f"{burn.rate:g}"},
        "annotations": {
            "summary": f"The budget of {o.name} burns at more than {burn.rate:g} times what it can bear",
            "description": f"Objective: {o.words}.",
        },
    }
