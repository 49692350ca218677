"""What a panel is, as a value: it knows no Grafana, so that a test can ask a real Prometheus every question of it."""

from typing import Literal, NamedTuple

RATE = "$__rate_interval"
INSTANCE = 'instance=~"$instance"'
"""Every expression is of the chosen workers."""


class Target(NamedTuple):
    """One line or set of lines: an expression, and how each is called."""

    expr: str
    legend: str = ""


class Panel(NamedTuple):
    """unit: as Grafana names it. red_above, red_below: the objective's edge, where there is one."""

    title: str
    description: str
    unit: str
    targets: tuple[Target, ...]
    kind: Literal["lines", "number", "bars"] = "lines"
    red_above: float | None = None
    red_below: float | None = None


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


class Board(NamedTuple):
    """uid: never changes, so that links and bookmarks last."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def metric(name: str, **labels: str) -> str:
    """A metric of the chosen workers. labels: what each has to be, or, with `|` between, one of what."""
    matchers = [INSTANCE]
    matchers += [f'{label}{"=~" if "|" in value else "="}"{value}"' for label, value in labels.items()]
    return f"{name}{{{', '.join(matchers)}}}"


def rate(name: str, **labels: str) -> str:
    """Its rate a second."""
    return f"rate({metric(name, **labels)}[{RATE}])"


def quantile(q: float, name: str, by: str = "") -> Target:
    """A quantile of a histogram, over all workers, by a label or not."""
    labels = f"le, {by}" if by else "le"
    return Target(
        f"histogram_quantile({q}, sum by ({labels}) ({rate(name + '_bucket')}))",
        f"p{q * 100:g}" + (f" {{{{{by}}}}}" if by else ""),
    )


def mean(name: str, by: str) -> Target:
    """The mean of a histogram, by a label."""
    return Target(
        f"sum by ({by}) ({rate(name + '_sum')}) / sum by ({by}) ({rate(name + '_count')})", f"{{{{{by}}}}}"
    )
