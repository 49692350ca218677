"""One fixed-size binary record a customer, generated from the spec.

The *names* of the fields are the same for every spec; only their shapes follow it. So one compiled fold and one store
serve every spec, and a record read in a notebook explains itself. The record consists of *sections*, each with an owner
who alone changes it, and a version that its owner raises; a section can grow without the others being forgotten.
Within a section fields are ordered by alignment (8-byte ones first), and each section is padded to a multiple of 8
bytes, so that a record is never read unaligned. The default spec, drawn:

    ┌──────────────┬───────────────────────────────────────────────────────────────────────────┐
    │ fold         │ the customer's behaviour, written by the fold                             │
    │   times   i8 │ first_seen last_seen event_time row_watermark decided_at terminated_at    │
    │   place   i8 │ last_seen_offset, of the last activity; -1 when it came from a file       │
    │   kinds      │ kind_last i8[K]  kind_count u4[K]                                         │
    │   windows    │ tile_head i8[W]  tile_count u2[C,T]                                       │
    │   values     │ a row of cells a value and store: tile_sum f4[V,T]  value_last f4[V] …    │
    │   rhythm     │ gap_mean f8  gap_m2 f8  gap_count u4  day_bits i8[B]  day_head i4         │
    │   decays     │ decay f4[D,H]      week  week_count u1[Q]      target  target_last i8[P]  │
    │   targets    │ further_last i8[G]  further_index u1[G], of those beside the primary one  │
    │   attributes │ attribute_at i8[A]  attribute_value f4[A]                                 │
    │   sequence   │ ring_value f4[L]  ring_gap f4[L]  ring_count u2[L]  ring_kind u1[L]       │
    │   duplicates │ recent_id u8[R]                                                           │
    │   counters   │ activity_count late_count u4  ring_head recent_head silence_index u1 …    │
    ├──────────────┼───────────────────────────────────────────────────────────────────────────┤
    │ policy       │ an episode a target, written by `stream/decision/`                        │
    │   times   i8 │ episode_opened_at[T] below_exit_at[T] cooldown_until[T] scored_at         │
    │   state      │ sequence i8[T]  score f4[T]  episode_state u1[T]  episode_band u1[T]      │
    ├──────────────┼───────────────────────────────────────────────────────────────────────────┤
    │ model        │ nothing yet: what a model will carry from event to event                  │
    └──────────────┴───────────────────────────────────────────────────────────────────────────┘
    K kinds · C counted kinds · W windows · T tiles of all windows · V rows of a store · D kinds with decays
    H half-lives · L sequence entries · B 64-day words · A attributes · R remembered event ids · Q parts of the week
    P 1 where the primary target is apart from activity · G further targets; of the policy's section T is the targets.
    The stores of values are those of `featurestore/aggregations.py`.

A new customer is all zero bytes: time 0 means never, which is why event times start at 1.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.aggregations import STORES
from ebbtide.featurestore.events.contract import TIME_MS_MAX
from ebbtide.featurestore.kinds import Kind
from ebbtide.featurestore.record.arguments import NOT_IN_RING, ROLES, SCORES, Plan
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.target import target_events
from ebbtide.featurestore.times.zones import offsets

FOLD_VERSION = 3
"""Raise it when the fold makes other bytes of the same events; `tests/golden` notices."""
POLICY_VERSION = 1
"""Raise it when the policy reads its section otherwise; 1 to 255, since it stands in every stored record."""

Rows = NDArray[np.void]
"""A structured array of records, shape [n], of a layout's dtype."""

Field = tuple[str, str, tuple[int, ...]]
"""Name, dtype of an entry, shape."""


def _episodes(targets: int) -> list[Field]:
    """The policy's section: an episode a target. Of one target it has the bytes of the releases that knew no other,
    with the band in what was padding then: their open episodes stay open."""
    axis = (targets,)
    return [
        ("episode_opened_at", "<i8", axis), ("below_exit_at", "<i8", axis), ("cooldown_until", "<i8", axis),
        ("scored_at", "<i8", ()), ("sequence", "<i8", axis), ("score", "<f4", axis), ("episode_state", "u1", axis),
        ("episode_band", "u1", axis),
    ]  # fmt: skip


EPISODE_FIELDS = tuple(name for name, _, _ in _episodes(1))
"""What `stream/decision/` keeps in the record; the fold only clears them, the model never sees them."""

BOOKKEEPING_FIELDS = (
    "recent_id",
    "recent_head",
    "silence_index",
    "further_index",
    "last_seen_offset",
    "decided_at",
    "row_watermark",
    "late_count",
)
"""What the fold keeps for itself; the model never sees these either."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the record with an owner: bytes [start, start + size), a version, and an id that both decide."""

    name: str
    version: int
    start: int
    size: int
    id: str


class Layout:
    """The record layout of one spec: `dtype`, its sections, its id, and where each kind's slots lie.

    `tile_start` int64[W]: first tile of each window. `count_slot`, `decay_slot`, `attribute_slot` int64[K]: the
    slot of each kind in `tile_count`, `decay`, `attribute_value`, or -1. `row` int64[stores, K, C]: the first row of
    each value of each kind in each store, or -1; `rows`: rows of each store.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        kinds = spec.kinds
        self.tile_start = np.cumsum([0, *(window.tiles for window in spec.windows)])[:-1].astype(np.int64)
        self.tiles = sum(window.tiles for window in spec.windows)
        self.count_slot = _slots(kind.counted for kind in kinds)
        self.decay_slot = _slots(kind.decay and kind.counted and bool(spec.half_lives_ms) for kind in kinds)
        self.attribute_slot = _slots(kind.role == "attribute" for kind in kinds)
        self.row, self.rows = _rows(spec)
        self._fields = {
            "fold": _padded("fold", self._fold_fields()),
            "policy": _padded("policy", _episodes(len(spec.target_names))),
        }
        self.dtype = np.dtype([field for fields in self._fields.values() for field in fields])

    @property
    def itemsize(self) -> int:
        """Bytes a record."""
        return self.dtype.itemsize

    @cached_property
    def id(self) -> str:
        """`fold:<16 hex digits>/policy:<16 hex digits>`: state of another fold is refused, of another policy section
        taken over without it."""
        return "/".join(f"{section.name}:{section.id}" for section in self.sections)

    @cached_property
    def fold_id(self) -> str:
        """`fold:<16 hex digits>`, the part of the id that a model depends on."""
        return fold_of(self.id)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The sections in the record's order. A section without fields is none."""
        behind = {"fold": (FOLD_VERSION, self._meaning()), "policy": (POLICY_VERSION, {})}
        found, start = [], 0
        for name, fields in self._fields.items():
            version, meaning = behind[name]
            size = np.dtype(fields).itemsize
            found.append(Section(name, version, start, size, _digest(fields, version, meaning)))
            start += size
        return tuple(found)

    @cached_property
    def plan(self) -> Plan:
        """The spec as the compiled fold reads it."""
        spec, dtype = self.spec, self.dtype
        target, table = spec.target_events, offsets(spec.week.zone if spec.week else "UTC")
        return Plan(
            role=np.array([ROLES[kind.role] for kind in spec.kinds], np.uint8),
            score=np.array([SCORES[kind.score] for kind in spec.kinds], np.uint8),
            hop=np.array([window.hop_ms for window in spec.windows], np.int64),
            tiles=np.array([window.tiles for window in spec.windows], np.int64),
            tile_start=self.tile_start,
            count_slot=self.count_slot,
            decay_slot=self.decay_slot,
            attribute_slot=self.attribute_slot,
            ring_slot=np.array([_ring_slot(kind) for kind in spec.kinds], np.int64),
            row=self.row,
            rows=self.rows,
            half_life=np.array(spec.half_lives_ms, np.float64),
            silence=np.array(spec.silences_ms, np.int64),
            after_first=np.array(sorted(spec.score_after_first_ms), np.int64),
            target=target.kinds,
            target_column=target.column,
            target_low=target.low,
            target_high=target.high,
            target_apart=int(spec.arms_apart),
            week_since=np.array([since for since, _ in table], np.int64),
            week_offset=np.array([offset for _, offset in table], np.int64),
            week_buckets=spec.week.buckets if spec.week else 0,
            counted=dtype["tile_count"].shape[0],
            decays=dtype["decay"].shape[0],
            day_words=dtype["day_bits"].shape[0],
            dedupe=dtype["recent_id"].shape[0],
            memory=spec.memory_ms,
            longest_window=spec.longest_window_ms,
            coalesce=spec.sequence.coalesce_ms,
            score_every=spec.score_every_ms,
            min_events=spec.eligibility.min_events,
            min_tenure=spec.eligibility.min_tenure_ms,
            max_tenure=spec.eligibility.max_tenure_ms or TIME_MS_MAX,
            max_silence=spec.eligibility.max_silence_ms or spec.memory_ms,
            **_further(spec),
        )

    @cached_property
    def model_fields(self) -> tuple[str, ...]:
        """Names of the record fields that the SavedModel takes as inputs, in record order."""
        hidden = {*EPISODE_FIELDS, *BOOKKEEPING_FIELDS, *PADDING_FIELDS}
        return tuple(
            name for name in self.dtype.names or () if name not in hidden and self.dtype[name].itemsize > 0
        )

    def empty(self, n: int) -> Rows:
        """`n` new customers: zero bytes."""
        return np.zeros(n, self.dtype)

    def _meaning(self) -> dict[str, Any]:
        """What gives the fold's bytes their meaning beside their places: the plan's numbers, and the names behind the
        indices. What a later release adds is left out where it means *as before*."""
        defaults = Plan._field_defaults
        numbers = {
            name: np.asarray(value).tolist()
            for name, value in self.plan._asdict().items()
            if name not in defaults or not np.array_equal(value, defaults[name])
        }
        meaning: dict[str, Any] = {"plan": numbers, "kinds": [_names(kind) for kind in self.spec.kinds]}
        if (composite := self.spec.customer) is not None:  # whose records, and in which partition they are
            meaning["customer"] = [len(composite.fields), composite.key]
        return meaning

    def _fold_fields(self) -> list[Field]:
        spec, k, t = self.spec, len(self.spec.kinds), self.tiles
        decays, rows = _count(self.decay_slot), dict(zip(STORES, self.rows.tolist(), strict=True))
        attributes, half_lives = _count(self.attribute_slot), len(spec.half_lives_ms)
        length, windows = spec.sequence.length, len(spec.windows)
        day_words = -(-max(spec.days_active, default=0) // 64)

        def stores(dtype: str) -> list[Field]:
            """The stores of entries of a size."""
            return [
                (store.field, store.dtype, (rows[store], t) if store.tiled else (rows[store],))
                for store in STORES if store.dtype[1:] == dtype
            ]  # fmt: skip

        return [
            ("first_seen", "<i8", ()), ("last_seen", "<i8", ()), ("last_seen_offset", "<i8", ()),
            ("event_time", "<i8", ()), ("row_watermark", "<i8", ()), ("decided_at", "<i8", ()),
            ("terminated_at", "<i8", ()),
            ("gap_mean", "<f8", ()), ("gap_m2", "<f8", ()),
            ("kind_last", "<i8", (k,)), ("tile_head", "<i8", (windows,)), ("day_bits", "<i8", (day_words,)),
            ("target_last", "<i8", (int(spec.arms_apart),)), ("further_last", "<i8", (len(spec.further),)),
            ("attribute_at", "<i8", (attributes,)), ("recent_id", "<u8", (spec.dedupe,)), *stores("i8"),
            ("kind_count", "<u4", (k,)), ("decay", "<f4", (decays, half_lives)), *stores("f4"),
            ("attribute_value", "<f4", (attributes,)),
            ("ring_value", "<f4", (length,)), ("ring_gap", "<f4", (length,)),
            ("activity_count", "<u4", ()), ("gap_count", "<u4", ()), ("late_count", "<u4", ()),
            ("day_head", "<i4", ()),
            ("tile_count", "<u2", (_count(self.count_slot), t)), *stores("u2"), ("ring_count", "<u2", (length,)),
            ("ring_head", "<u2", ()), ("ring_kind", "u1", (length,)),
            ("week_count", "u1", (spec.week.buckets if spec.week else 0,)),
            ("recent_head", "u1", ()), ("silence_index", "u1", ()),
            ("further_index", "u1", (len(spec.further),)),
        ]  # fmt: skip


PADDING_FIELDS = ("fold_padding", "policy_padding")
"""What fills each section up to a multiple of 8 bytes."""


def fold_of(layout_id: str) -> str:
    """The fold's part of a layout's id: states with the same one hold the same behaviour."""
    return layout_id.partition("/")[0]


def fold_bytes(dtype: np.dtype[Any]) -> int:
    """Bytes of the fold's section, which comes first, in records of this dtype: all where there is no other."""
    first = EPISODE_FIELDS[0]
    return int(dtype.fields[first][1]) if dtype.fields and first in dtype.fields else dtype.itemsize


def _padded(section: str, fields: list[Field]) -> list[Field]:
    padding = -np.dtype(fields).itemsize % 8
    return [*fields, (f"{section}_padding", "V1", (padding,))]


def _digest(fields: list[Field], version: int, meaning: dict[str, Any]) -> str:
    """16 hex digits. A field of no entries has no bytes, so it says nothing."""
    described = [field for field in fields if np.dtype([field]).itemsize]
    text = json.dumps([described, version, meaning], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _names(kind: Kind) -> dict[str, Any]:
    """What a kind's index stands for. The order of its event types means nothing."""
    named: dict[str, Any] = {"types": sorted(kind.types)}
    if kind.readings:
        named["values"] = [[value.path, value.reads, value.categories] for value in kind.readings]
    if kind.stamp != "as_is":
        named["stamp"] = kind.stamp
    return named


def _rows(spec: Spec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`Layout.row` and `Layout.rows`: rows are dealt out in the order of the kinds and of their values."""
    row = np.full((len(STORES), len(spec.kinds), spec.value_columns), -1, np.int64)
    rows = np.zeros(len(STORES), np.int64)
    for k, kind in enumerate(spec.kinds):
        for c, value in enumerate(kind.readings):
            for x, store in enumerate(STORES):
                if kind.counted and store in value.stores:
                    row[x, k, c] = rows[x]
                    rows[x] += value.rows(store)
    return row, rows


def _further(spec: Spec) -> dict[str, NDArray[Any]]:
    """What the plan says of the targets beside the primary one: a row each, none without any."""
    if not spec.further:
        return {}
    found = [target_events(spec.kinds, target) for target in spec.further]
    return {
        "further": np.stack([each.kinds for each in found]),
        "further_column": np.stack([each.column for each in found]),
        "further_low": np.stack([each.low for each in found]),
        "further_high": np.stack([each.high for each in found]),
        "further_arms": np.array([target.churn_when == "absent" for target in spec.further], np.uint8),
    }


def _ring_slot(kind: Kind) -> int:
    if kind.role != "activity" or not kind.features:
        return NOT_IN_RING
    return next((c for c, value in enumerate(kind.readings) if value.reads == "number"), -1)


def _slots(chosen: Iterable[bool]) -> NDArray[np.int64]:
    flags = np.fromiter(chosen, bool)
    return np.where(flags, np.cumsum(flags) - 1, -1).astype(np.int64)


def _count(slots: NDArray[np.int64]) -> int:
    return int((slots >= 0).sum())
