"""What the audience sees: a live panel in a terminal, plain lines in a file, the verdict as a table in both.

It puts into words what it is given and computes nothing but rounding. The invariant: a line in a file stands for
itself, and what the table says, the JSON says, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ebbtide.ops.demo.verdict import Verdict
from ebbtide.ops.demo.watch import Seen

ALERTS_SHOWN = 9
LINE_EVERY_S = 5.0
ALERTS_A_LINE = 2


@dataclass(frozen=True, slots=True)
class Moment:
    """The show as it stands. Counts since it opened, rates of the last second, latencies of all alerts so far."""

    today: date
    days: float
    share: float
    seconds: float
    events: int
    events_per_s: float
    behind: int
    customers: int
    records_a_batch: float
    rows_a_dispatch: float
    p50_ms: float
    p99_ms: float
    opened: Sequence[Seen]


class View:
    """A context manager; `show` takes every moment there is and shows those it has room for."""

    def __init__(self, console: Console, address: str) -> None:
        self._console, self._address = console, address
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._told_s, self._told = -math.inf, 0

    def __enter__(self) -> "View":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, moment: Moment) -> None:
        """Refresh the panel, or write the next lines if it is time."""
        if self._live is not None:
            self._live.update(_panel(moment, self._address), refresh=True)
        elif moment.seconds - self._told_s >= LINE_EVERY_S:
            self._told_s = moment.seconds
            self._console.print(line(moment), soft_wrap=True)
            for seen in moment.opened[self._told :][-ALERTS_A_LINE:]:
                self._console.print("      " + alert_words(seen), soft_wrap=True)
            self._told = len(moment.opened)


def line(m: Moment) -> str:
    """A moment in one line."""
    return (
        f"{m.seconds:4.0f} s  {m.today:%d %b}  {m.events:>8,} events  {m.events_per_s:>6,.0f}/s"
        f"  {m.customers:>6,} customers  batch {m.records_a_batch:>5.1f} events, {m.rows_a_dispatch:>5.1f} rows"
        f"  alerts {len(m.opened):>5,}  p50 {_ms(m.p50_ms)}  p99 {_ms(m.p99_ms)}"
    )


def alert_words(seen: Seen) -> str:
    """An alert as a person would read it aloud."""
    alert = seen.alert
    p = "" if alert.probability is None else f"{alert.probability:.0%}  "
    return f"{alert.customer}  {p}" + "; ".join(reason.words for reason in alert.reasons)


def _panel(m: Moment, address: str) -> Panel:
    figures = Table.grid(padding=(0, 3))
    for _ in range(4):
        figures.add_column()
    behind = f"  ({m.behind:,} behind)" if m.behind > max(m.events_per_s, 100) else ""
    cells = (
        (f"[b]{m.events_per_s:,.0f}[/b] events/s{behind}", f"[b]{m.events:,}[/b] events",
         f"[b]{m.customers:,}[/b] customers", f"[b]{len(m.opened):,}[/b] alerts"),
        (f"event to alert p50 [b]{_ms(m.p50_ms)}[/b]", f"p99 [b]{_ms(m.p99_ms)}[/b]",
         f"batches of [b]{m.records_a_batch:.1f}[/b] events", f"[b]{m.rows_a_dispatch:.1f}[/b] rows a dispatch"),
    )  # fmt: skip
    for row in cells:
        figures.add_row(*map(Text.from_markup, row))
    alerts = Table.grid(padding=(0, 2), expand=True)
    alerts.add_column(no_wrap=True)
    alerts.add_column(no_wrap=True, justify="right")
    alerts.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for seen in reversed(m.opened[-ALERTS_SHOWN:]):
        p = seen.alert.probability
        words = "; ".join(reason.words for reason in seen.alert.reasons)
        alerts.add_row(Text(seen.alert.customer), Text("" if p is None else f"{p:.0%}", "bold"), Text(words))
    bar = ProgressBar(total=1.0, completed=m.share)
    return Panel(
        Group(bar, "", figures, "", alerts),
        title=f"[b]Ebbtide[/b]  {m.today:%A %d %B %Y}", title_align="left", padding=(1, 2),
        subtitle=f"{address}/metrics  ·  Ctrl-C ends it", subtitle_align="left",
    )  # fmt: skip


def verdict_table(v: Verdict, horizon_days: float) -> Table:
    """Alerts against what the customers really did."""
    table = Table(
        title="Alerts against what the customers really did", title_justify="left", title_style="bold"
    )
    table.add_column("")
    for name in ("Ebbtide", "by recency", "at random"):
        table.add_column(name, justify="right")
    table.add_row("alerts", f"{v.ours.alerts:,.0f}", f"{v.recency.alerts:,.0f}", "")
    table.add_row(
        f"right: nothing followed for {horizon_days:g} days (precision)",
        *(_percent(share) for share in (v.ours.precision, v.recency.precision, v.base_rate)),
    )
    table.add_row(
        "known before it was churn: lead time, median",
        _days(v.ours.lead_days),
        _days(v.recency.lead_days),
        "",
    )
    table.add_row(
        f"of {v.silences:,} silences of {horizon_days:g} days: alerted in time (recall)",
        _percent(v.recall),
        "",
        "",
    )
    table.add_row(
        "alerts that only silence could bring: no event followed", f"{v.by_silence_alone:,}", "", ""
    )
    return table


def footnotes(v: Verdict) -> list[str]:
    """What the columns of the table mean."""
    low, high = v.silence_days
    after = f"{low:.1f} days" if low == high else f"{low:.1f} to {high:.1f} days"
    lead = (
        "lead time counts from the moment that an alert is about; a silence is told by a timer when that moment has"
        " passed, whether or not the customer is ever heard of again"
    )
    return [
        f"by recency: as many alerts, each when its customer had been silent for {after}, at the same decision points",
        f"at random: the base rate, over all {v.points:,} decision points of the show",
        lead,
    ]


def _ms(value: float) -> str:
    return "  -  " if math.isnan(value) else f"{value:,.0f} ms"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _days(days: float) -> str:
    return "-" if math.isnan(days) else f"{days:.1f} days"
