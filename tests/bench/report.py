"""The bench's figures as a table: a service a column, a figure a row, and what they amount to below."""

import os
from collections.abc import Callable
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.bench.run import STAGES, Figures, Latency
from tests.bench.services import VARIANTS
from tests.bench.traffic import CUSTOMERS

MIB = 1 << 20
P99_MS_WANTED, TIMES_WANTED = 100.0, 10.0


def table(figures: dict[str, Figures]) -> RenderableType:
    """The whole report."""
    shown = [variant for variant in VARIANTS if variant.name in figures]
    grid = Table("", *(variant.title for variant in shown), title="make bench", title_justify="left")
    for column in grid.columns[1:]:
        column.justify = "right"

    def row(name: str, value: Callable[[Figures], str], *, end_section: bool = False) -> None:
        grid.add_row(name, *(value(figures[variant.name]) for variant in shown), end_section=end_section)

    row("events/s, most", lambda f: f"{f.events_per_s:,.0f}")
    row("alerts, share of events", lambda f: f"{f.alert_share:.2%}", end_section=True)
    for title, which in (("half of it", lambda f: f.half), ("a common rate", lambda f: f.common)):
        row(f"at {title}: events/s", _of(which, lambda found: f"{found.rate:,.0f}"))
        row("  event to alert p50, ms", _of(which, lambda found: f"{found.p50_ms:,.0f}"))
        row("  event to alert p99, ms", _of(which, lambda found: f"{found.p99_ms:,.0f}"))
        row("  alerts measured", _of(which, lambda found: f"{found.alerts:,}"))
        row(
            "  producer late at most, ms",
            _of(which, lambda found: f"{found.late_ms_max:,.0f}"),
            end_section=True,
        )
    for name in ("worker", "kafka", "redis", "others"):
        row(f"cores busy at most: {name}", partial(_cores, name))
    row("worker's peak RSS, MiB", lambda f: f"{f.rss_bytes_max / MIB:,.0f}")
    row("bytes a customer in the store", lambda f: f"{f.store_bytes_per_customer:,.0f}", end_section=True)
    for stage in ("fetch", *STAGES):
        row(f"{stage}, µs an event", partial(_stage, stage))
    row("events a batch", lambda f: _figure(f.batches.get("events"), "{:,.1f}"))
    row("rows a dispatch", lambda f: _figure(f.batches.get("rows"), "{:,.1f}"))
    row("padding, of rows", lambda f: _figure(f.batches.get("padding_share"), "{:.0%}"))
    row(
        "dispatches by reason",
        lambda f: ", ".join(f"{k} {v:,.0f}" for k, v in sorted(f.dispatches.items())) or "",
    )
    row("machine load before, after", lambda f: f"{f.load[0]:.1f}, {f.load[1]:.1f}")
    return Group(grid, Text(_words(figures)))


def _words(figures: dict[str, Figures]) -> str:
    lines = [
        f"{CUSTOMERS:,} customers, {os.cpu_count()} cores shared by producer, Kafka, Valkey and the service.",
        "Stages are wall time, waiting for the loop and the scorer included; fetch is aiokafka's own part.",
    ]
    ours, idiomatic = figures.get("ours"), figures.get("idiomatic")
    if ours and ours.half:
        kept = "within" if ours.half.p99_ms <= P99_MS_WANTED else "ABOVE"
        lines.append(
            f"Ours at half of its maximum: p99 {ours.half.p99_ms:.0f} ms, {kept} {P99_MS_WANTED:.0f} ms."
        )
    if ours and idiomatic and ours.half and idiomatic.half:
        times = ours.events_per_s / idiomatic.events_per_s
        same = "no worse" if ours.half.p99_ms <= idiomatic.half.p99_ms else "WORSE"
        lines.append(
            f"Ours does {times:.1f} times the idiomatic service's events/s (wanted: {TIMES_WANTED:.0f}), at {same} p99"
            f" ({ours.half.p99_ms:.0f} against {idiomatic.half.p99_ms:.0f} ms, each at half of its own maximum)."
        )
    if ours and (slow := figures.get("per_record")):
        lines.append(
            f"... and {ours.events_per_s / slow.events_per_s:.1f} times its own with a message a record."
        )
    return "\n".join(lines)


def _of(
    which: Callable[[Figures], Latency | None], say: Callable[[Latency], str]
) -> Callable[[Figures], str]:
    def value(figures: Figures) -> str:
        found = which(figures)
        return "" if found is None else say(found)

    return value


def _cores(process: str, figures: Figures) -> str:
    return _figure(figures.cores.get(process), "{:.2f}")


def _stage(stage: str, figures: Figures) -> str:
    return _figure(figures.split_us.get(stage), "{:.2f}")


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
