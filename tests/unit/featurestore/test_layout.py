"""The record: its size, its alignment, and the drawing of it in `featurestore/README.md`, which has to stay true."""

import re
from pathlib import Path

import numpy as np
import pytest

from ebbtide.featurestore.record.layout import BOOKKEEPING_FIELDS, EPISODE_FIELDS, Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import DAY_MS, format_duration
from tests.support.oracle.histories import random_spec

ROOT = Path(__file__).resolve().parents[3]
DEMO = Layout(load_spec(ROOT / "ops" / "specs" / "demo.yaml"))
README = (ROOT / "featurestore" / "README.md").read_text(encoding="utf-8")


def test_the_demo_spec_keeps_a_customer_within_a_kibibyte() -> None:
    assert DEMO.itemsize <= 1024
    assert f"**{DEMO.itemsize} bytes**" in README


def test_the_drawn_record_is_the_record() -> None:
    """Each row of the table: the fields it names begin at its byte, and together have its bytes; none is left out."""
    table = README[README.index("| field |") :]
    rows = re.findall(r"^\| (`[^|]+) \|[^|]*\|[^|]*\| (\d+) \| (\d+) \|", table, re.MULTILINE)
    names = list(DEMO.dtype.names or ())
    drawn: list[str] = []
    for cell, byte, size in rows:
        fields = re.findall(r"`(\w+)`", cell)
        if "…" in cell:
            fields = names[names.index(fields[0]) : names.index(fields[-1]) + 1]
        offset = DEMO.dtype.fields[fields[0]][1]  # type: ignore[index]  # a structured dtype has fields
        assert (offset, sum(DEMO.dtype[name].itemsize for name in fields)) == (int(byte), int(size)), fields
        drawn += fields
    assert drawn == names
    assert sum(int(size) for _, _, size in rows) == DEMO.itemsize


def test_the_published_bound_is_the_specs() -> None:
    """`| 30 d | 6 | 5 d | 25 d to 30 d |`"""
    for window in DEMO.spec.windows:
        length, hop = window.length_ms // DAY_MS, window.hop_ms // DAY_MS
        assert f"| {length} d | {window.tiles} | {hop} d | {length - hop} d to {length} d |" in README
        assert format_duration(window.length_ms) == f"{length}d"


@pytest.mark.parametrize("seed", range(20))
def test_every_record_is_aligned_and_every_field_is_someones(seed: int) -> None:
    layout = Layout(random_spec(seed))
    rows = layout.empty(3)
    assert layout.itemsize % 8 == 0
    for name in layout.dtype.names or ():
        assert rows[name].flags.aligned, name
    known = {*layout.model_fields, *EPISODE_FIELDS, *BOOKKEEPING_FIELDS, "padding"}
    empty = {name for name in layout.dtype.names or () if layout.dtype[name].itemsize == 0}
    assert set(layout.dtype.names or ()) == known | empty
    assert not rows.view(np.uint8).any()


def test_the_layout_id_follows_what_decides_the_bytes() -> None:
    """Words may be changed; a window, a role or a half-life may not."""
    spec = random_spec(1)
    renamed = spec.model_copy(update={"name": "other"})
    wider = spec.model_copy(update={"score_every_ms": spec.score_every_ms + 1})
    assert Layout(renamed).id == Layout(spec).id
    assert Layout(wider).id != Layout(spec).id
