"""The record: its size, its alignment, and the drawing of it in `featurestore/README.md`, which has to stay true."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.record.costs import costs
from ebbtide.featurestore.record.layout import (
    BOOKKEEPING_FIELDS,
    EPISODE_FIELDS,
    PADDING_FIELDS,
    Layout,
    fold_of,
)
from ebbtide.featurestore.spec import load_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, format_duration
from tests.support.oracle.histories import random_spec

ROOT = Path(__file__).resolve().parents[3]
DEMO = Layout(load_spec(ROOT / "ops" / "specs" / "demo.yaml"))
VISIT = {"name": "visit", "types": ["visit", "view"]}
BUY = {"name": "buy", "aggregate": ["sum"]}
TIER = {"name": "tier", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]}
PLAIN: dict[str, Any] = {
    "name": "plain", "horizon": "14d", "memory": "100d", "windows": {"7d": 7}, "kinds": [VISIT, BUY, TIER],
}  # fmt: skip
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
    known = {*layout.model_fields, *EPISODE_FIELDS, *BOOKKEEPING_FIELDS, *PADDING_FIELDS}
    empty = {name for name in layout.dtype.names or () if layout.dtype[name].itemsize == 0}
    assert set(layout.dtype.names or ()) == known | empty
    assert not rows.view(np.uint8).any()


@pytest.mark.parametrize("seed", range(40))
def test_the_lines_of_a_spec_cost_what_the_record_takes(seed: int) -> None:
    """Every byte is some line's; a line that is taken out saves what it was said to cost, padding aside."""
    spec = random_spec(seed)
    lines = costs(Layout(spec))
    assert sum(size for _, size in lines) == Layout(spec).itemsize
    assert all(size > 0 for _, size in lines)
    without = spec.model_copy(update={"kinds": spec.kinds[:-1]})
    if len(spec.kinds) > 1:
        last = [
            size for line, size in lines[: [line for line, _ in lines].index("kind " + spec.kinds[-1].name)]
        ]
        saved = Layout(spec).itemsize - Layout(without).itemsize
        own = sum(size for line, size in lines if "kind" in line or line.startswith("  ")) - sum(last)
        assert abs(saved - own) < 8


@pytest.mark.parametrize("seed", range(20))
def test_sections_follow_each_other_and_each_begins_aligned(seed: int) -> None:
    layout = Layout(random_spec(seed))
    assert [section.name for section in layout.sections] == ["fold", "policy"]
    at = 0
    for section in layout.sections:
        assert (section.start, section.start % 8) == (at, 0)
        at += section.size
    assert at == layout.itemsize
    offsets = {name: layout.dtype.fields[name][1] for name in EPISODE_FIELDS}  # type: ignore[index]  # it has fields
    assert min(offsets.values()) == layout.sections[1].start


def test_the_id_says_what_decides_the_bytes_and_their_meaning() -> None:
    """Words may be changed; a window, a role, a half-life, what a type or a category stands for may not."""
    spec = parse_spec(PLAIN)
    same = [
        {**PLAIN, "name": "other"},
        {**PLAIN, "unknown": "ignore"},
        {**PLAIN, "future_max": "2d", "past_max": "500d"},
        {**PLAIN, "mapping": {"user_id": "userId"}},
        {**PLAIN, "kinds": [{**VISIT, "noun": "calls"}, BUY, TIER]},
        {**PLAIN, "kinds": [{**VISIT, "types": ["view", "visit"]}, BUY, TIER]},
        {**PLAIN, "dedupe": 8, "score_every": "0s"},  # the defaults, written out
        {**PLAIN, "trends": [], "week": None, "targets": [], "score_after_first": []},
        {**PLAIN, "kinds": [VISIT, {**BUY, "values": [], "features": True}, TIER]},
        {**PLAIN, "eligibility": {"max_tenure": None}},
    ]
    other = [
        {**PLAIN, "score_every": "1ms"},
        {**PLAIN, "memory": "101d"},
        {**PLAIN, "dedupe": 7},
        {**PLAIN, "week": {"zone": "UTC", "buckets": 7}},
        {**PLAIN, "week": {"zone": "Europe/Berlin", "buckets": 7}},
        {**PLAIN, "score_after_first": ["5d"]},
        {**PLAIN, "eligibility": {"max_tenure": "50d"}},
        {**PLAIN, "targets": [{"name": "sale", "kinds": ["buy"]}]},
        {**PLAIN, "targets": [{"name": "sale", "kinds": ["buy"], "where": {"above": 3}}]},
        {**PLAIN, "targets": [{"name": "sale", "kinds": ["buy"]}, {"name": "look", "kinds": ["visit"]}]},
        {**PLAIN, "targets": [{"name": "look", "kinds": ["visit"]}, {"name": "sale", "kinds": ["buy"]}]},
        {**PLAIN, "kinds": [VISIT, {**BUY, "aggregate": ["max"]}, TIER]},
        {**PLAIN, "kinds": [VISIT, {**BUY, "features": False, "aggregate": []}, TIER]},
        {**PLAIN, "windows": {"7d": 14}},
        {**PLAIN, "half_lives": ["3d"]},
        {**PLAIN, "kinds": [VISIT, BUY]},
        {**PLAIN, "kinds": [BUY, VISIT, TIER]},
        {**PLAIN, "kinds": [{**VISIT, "types": ["visit"]}, {**BUY, "types": ["view", "buy"]}, TIER]},
        {**PLAIN, "kinds": [VISIT, {**BUY, "value": "properties.net"}, TIER]},
        {**PLAIN, "kinds": [VISIT, BUY, {**TIER, "categories": ["plus", "free"]}]},
        {**PLAIN, "kinds": [VISIT, BUY, {**TIER, "attribute": "number", "categories": []}]},
        {**PLAIN, "kinds": [{**VISIT, "stamp": "day_end"}, BUY, TIER]},
    ]
    assert {Layout(parse_spec(data)).id for data in same} == {Layout(spec).id}
    ids = [Layout(parse_spec(data)).id for data in other]
    assert len({*ids, Layout(spec).id}) == len(ids) + 1
    assert re.fullmatch(r"fold:[0-9a-f]{16}/policy:[0-9a-f]{16}", Layout(spec).id)
    policies = {each.rpartition("/")[2] for each in ids}
    assert len(policies) == 2, "the policy's section is the same for all of as many targets"
    assert fold_of(Layout(spec).id) == Layout(spec).fold_id == Layout(spec).id[:21]


def test_a_moved_field_is_another_id() -> None:
    """The id is made of the dtype: a moved field shows even where the record keeps its length."""
    layout = Layout(parse_spec(PLAIN))
    moved = Layout(parse_spec(PLAIN))
    fields = moved._fields["fold"]
    fields[0], fields[1] = fields[1], fields[0]
    assert moved.fold_id != layout.fold_id
    assert moved.sections[1].id == layout.sections[1].id


def test_an_open_episode_of_an_older_release_stays_open() -> None:
    """With one target the policy's section has the bytes of releases that knew no target and no band."""
    layout = Layout(load_spec(Path(__file__).parents[3] / "ops/specs/demo.yaml"))
    policy = next(section for section in layout.sections if section.name == "policy")
    old = np.zeros(1, [("opened_at", "<i8"), ("below_exit_at", "<i8"), ("cooldown_until", "<i8"),
                       ("scored_at", "<i8"), ("sequence", "<i8"), ("score", "<f4"), ("state", "u1"),
                       ("padding", "V1", (3,))])  # fmt: skip
    old["opened_at"], old["sequence"], old["score"], old["state"] = 5, 7, 0.75, 1
    assert (policy.version, policy.size) == (1, old.itemsize)
    record = bytearray(layout.itemsize)
    record[policy.start : policy.start + policy.size] = old.tobytes()
    (row,) = np.frombuffer(bytes(record), layout.dtype)
    assert [row[name].item() for name in EPISODE_FIELDS] == [5, 0, 0, 0, 7, 0.75, 1, 0]
