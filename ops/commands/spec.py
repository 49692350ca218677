"""`ebbtide spec`: does a log fit a spec, and what does the spec make of a customer?"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from ebbtide.featurestore.aggregations import STORES
from ebbtide.featurestore.check.events import check as find
from ebbtide.featurestore.record.costs import costs
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import BOOKKEEPING_FIELDS, EPISODE_FIELDS, Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.ops.commands.options import events_option, json_option
from ebbtide.ops.console import console, steps, table_and_json

spec_option = click.option(
    "--spec",
    "spec_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Feature spec in YAML.",
)


@click.group()
def command() -> None:
    """Check a feature spec against a log, draw its record."""


@command.command()
@spec_option
@json_option
def layout(spec_path: Path, json_path: Path | None) -> None:
    """Draw the binary record that the spec makes of a customer: every field, its shape and its bytes."""
    drawn = Layout(load_spec(spec_path))
    table = Table(box=None, pad_edge=False)
    for name, justify in (("offset", "right"), ("bytes", "right"), ("field", "left"), ("type", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # a literal, by way of a tuple
    table.add_column("one for each")
    table.add_column("read by")
    fields = list(_fields(drawn))
    for field in fields:
        shape = "×".join(map(str, field["shape"]))
        kind = f"{field['type']}[{shape}]" if shape else str(field["type"])
        cells = (str(field["offset"]), str(field["bytes"]), str(field["field"]), kind)
        table.add_row(*cells, ", ".join(field["axes"]), str(field["read_by"]))
    lines = costs(drawn)
    data = {
        "layout": drawn.id,
        "bytes": drawn.itemsize,
        "features": len(features(drawn.spec)),
        "fields": fields,
        "lines": [{"line": line.strip(), "bytes": size} for line, size in lines],
    }
    table_and_json(table, data, json_path)
    priced = Table(box=None, pad_edge=False, title="bytes by line of the spec", title_justify="left")
    priced.add_column("bytes", justify="right")
    priced.add_column("line")
    for line, size in lines:
        priced.add_row(str(size), line)
    console().print(priced)
    windows = ", ".join(f"{w.words} in {w.tiles} tiles" for w in drawn.spec.windows)
    console().print(
        f"\n{drawn.itemsize} bytes a customer · layout {drawn.id} · {len(drawn.spec.kinds)} kinds · windows {windows}"
        f" · {len(features(drawn.spec))} features\nsilence is scored after "
        + ", ".join(f"{s / DAY_MS:.3g}" for s in drawn.spec.silences_ms)
        + " days",
        soft_wrap=True,
    )


AXES = {
    "kind_last": ("kind",), "kind_count": ("kind",), "tile_head": ("window",), "day_bits": ("64 days",),
    "attribute_at": ("attribute",), "attribute_value": ("attribute",), "recent_id": ("remembered event id",),
    "decay": ("kind with decay", "half-life"), "tile_count": ("counted kind", "tile"),
    **{store.field: (store.words, *(("tile",) if store.tiled else ())) for store in STORES},
    "week_count": ("part of the week",), "target_last": ("target",), "further_last": ("further target",),
    "further_index": ("further target",),
    "ring_value": ("sequence entry",), "ring_gap": ("sequence entry",), "ring_count": ("sequence entry",),
    "ring_kind": ("sequence entry",),
}  # fmt: skip
"""What a field has one of, axis by axis."""


def _fields(layout: Layout) -> Iterator[dict[str, Any]]:
    """Fields with bytes in the record, in its order."""
    dtype = layout.dtype
    for name in dtype.names or ():
        of, offset = dtype[name], int(dtype.fields[name][1])  # type: ignore[index]  # a structured dtype has fields
        if not of.itemsize:
            continue
        if name in EPISODE_FIELDS:
            read_by = "decisions"
        elif name in BOOKKEEPING_FIELDS:
            read_by = "fold"
        else:
            read_by = "model" if name in layout.model_fields else ""
        yield {
            "field": name, "offset": offset, "bytes": of.itemsize, "type": np.dtype(of.base).name,
            "shape": list(of.shape), "axes": list(AXES.get(name, ())), "read_by": read_by,
        }  # fmt: skip


@command.command()
@spec_option
@events_option
@json_option
@click.pass_context
def check(ctx: click.Context, spec_path: Path, events: Path, json_path: Path | None) -> None:
    """Say in words what of a log does not fit a spec. Exit code 1 where it would not work as it is."""
    spec = load_spec(spec_path)
    with steps() as progress:
        progress(f"reading {events}")
        findings = find(events, spec)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        table.add_row(finding.severity, finding.text)
    table_and_json(table, {"findings": [asdict(finding) for finding in findings]}, json_path)
    counts = Counter(finding.severity for finding in findings)
    console().print(f"\n{counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes")
    ctx.exit(1 if counts["error"] else 0)
