"""The bench's figures as a table: a service a column, a figure a row, and what they amount to below."""

from collections.abc import Callable
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.bench.machine import Machine
from tests.bench.run import STAGES, Figures, Latency
from tests.bench.services import VARIANTS
from tests.bench.traffic import CUSTOMERS

MIB = 1 << 20
THROUGHPUT_COST_MAX, P99_COST_MS_MAX = 0.10, 25.0  # of exactly once: above it, it is off by default
P50_MS_WANTED, P99_MS_WANTED = 10.0, 50.0  # at half of the maximum
TIMES_WANTED = {"exactly_once": 1.0, "per_record": 1.0, "idiomatic": 20.0, "quix": 3.0}
EFFICIENCY_WANTED = 0.6
TELEMETRY_COST_MAX = 0.03  # of the CPU an event, metrics and traces together
TITLES = {variant.name: variant.title for variant in VARIANTS}


def table(figures: dict[str, Figures], machine: Machine) -> RenderableType:
    """The whole report: ratios first, then the figures."""
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
    row("CPU µs an event", lambda f: _figure(f.cpu_us if "worker" in f.cores else None, "{:.1f}"))
    for stage in ("fetch", *STAGES):
        row(f"{stage}, µs an event: wall", partial(_stage, stage))
    row("events a batch", lambda f: _figure(f.batches.get("events"), "{:,.1f}"))
    row("rows a dispatch", lambda f: _figure(f.batches.get("rows"), "{:,.1f}"))
    row("padding, of rows", lambda f: _figure(f.batches.get("padding_share"), "{:.0%}"))
    row(
        "dispatches by reason",
        lambda f: ", ".join(f"{k} {v:,.0f}" for k, v in sorted(f.dispatches.items())) or "",
    )
    row("machine load before, after", lambda f: f"{f.load[0]:.1f}, {f.load[1]:.1f}")
    shares = [_efficiency(found) for found in figures.values() if found.parts_us]
    return Group(Text(_ratios(figures)), grid, *shares, Text(_words(machine)))


def _efficiency(found: Figures) -> RenderableType:
    """The parts alone beside what the worker spent."""
    whole = sum(found.parts_us.values())
    grid = Table(
        *found.parts_us,
        "sum",
        "spent",
        "efficiency",
        title="CPU µs an event of each part alone",
        title_justify="left",
    )
    for column in grid.columns:
        column.justify = "right"
    parts = (f"{us:.2f}" for us in found.parts_us.values())
    grid.add_row(*parts, f"{whole:.1f}", f"{found.cpu_us:.1f}", f"{found.efficiency:.0%}")
    return grid


def _ratios(figures: dict[str, Figures]) -> str:
    """Ours against the others of the same run, and against what is wanted."""
    ours = figures.get("ours")
    if ours is None:
        return ""
    lines = []
    for variant in (each for each in VARIANTS if each.name in TIMES_WANTED):
        if (other := figures.get(variant.name)) is not None and other is not ours:
            times = ours.events_per_s / other.events_per_s
            half = _beside(ours.half, other.half, "half of each one's maximum")
            common = _beside(ours.common, other.common, "equal rates")
            wanted = TIMES_WANTED[variant.name]
            lines.append(
                f"Ours does {times:.1f} times the events/s of {variant.title} (wanted {wanted:.0f}){half}{common}."
            )
    lines += _costs(figures, ours)
    once = figures.get("exactly_once")
    if once is not None and once.common and ours.common:
        cost = 1 - once.events_per_s / ours.events_per_s
        later_ms = once.common.p99_ms - ours.common.p99_ms
        bearable = cost <= THROUGHPUT_COST_MAX and later_ms <= P99_COST_MS_MAX
        lines.append(
            f"Exactly once costs {cost:.0%} of the events/s, and {later_ms:+.0f} ms of p99 at equal rates:"
            f" {'within' if bearable else 'ABOVE'} {THROUGHPUT_COST_MAX:.0%} and {P99_COST_MS_MAX:.0f} ms."
        )
    if ours.half:
        kept = ours.half.p50_ms <= P50_MS_WANTED and ours.half.p99_ms <= P99_MS_WANTED
        lines.append(
            f"At half of the maximum event to alert takes p50 {ours.half.p50_ms:.0f}, p99 {ours.half.p99_ms:.0f} ms:"
            f" {'within' if kept else 'ABOVE'} {P50_MS_WANTED:.0f} and {P99_MS_WANTED:.0f}."
        )
    if ours.parts_us:
        lines.append(f"Efficiency {ours.efficiency:.0%} (wanted {EFFICIENCY_WANTED:.0%}).")
    return "\n".join(lines)


def _costs(figures: dict[str, Figures], ours: Figures) -> list[str]:
    """What telemetry costs at the most that it can do, and ours of another shape beside ours."""
    lines = []
    bare = figures.get("untold")
    for name, words in (
        ("ours", "Metrics cost"),
        ("traced", "With traces they cost"),
        ("traced_all", "All traced,"),
    ):
        if bare is not None and (found := figures.get(name)) is not None:
            cost, fewer = found.cpu_us / bare.cpu_us - 1, 1 - found.events_per_s / bare.events_per_s
            within = "within" if cost <= TELEMETRY_COST_MAX else "ABOVE"
            wanted = f": {within} {TELEMETRY_COST_MAX:.0%}" if name != "traced_all" else ""
            lines.append(f"{words} {cost:+.1%} of the CPU an event, {fewer:+.1%} of the events/s{wanted}.")
    return lines + [
        f"{TITLES[name]}: {found.cpu_us:.1f} µs of CPU an event (ours {ours.cpu_us:.1f}),"
        f" {found.events_per_s / ours.events_per_s:.2f} times the events/s"
        f"{_beside(found.half, ours.half, 'half of its own maximum')}."
        for name in ("two", "hot")
        if (found := figures.get(name)) is not None
    ]


def _beside(ours: Latency | None, other: Latency | None, at: str) -> str:
    """p99 against p99."""
    if ours is None or other is None:
        return ""
    return (
        f"; at {at} {ours.p99_ms / other.p99_ms:.2f} times its p99 ({ours.p99_ms:.0f}, {other.p99_ms:.0f} ms)"
    )


def _words(machine: Machine) -> str:
    return (
        f"{CUSTOMERS:,} customers; {machine}, shared by producer, Kafka, Valkey and the service.\n"
        "Stages are wall time, waiting for the loop and the scorer included; fetch is aiokafka's own part."
    )


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
