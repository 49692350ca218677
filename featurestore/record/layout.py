"""One fixed-size binary record a customer, generated from the spec.

The *names* of the fields are the same for every spec; only their shapes follow it. So one compiled fold and one store
serve every spec, and a record read in a notebook explains itself. The record consists of *sections*, each with an owner
who alone changes it, and a version that its owner raises; a section can grow without the others being forgotten.
Within a section fields are ordered by alignment (8-byte ones first), and each section is padded to a multiple of 8
bytes, so that a record is never read unaligned. The default spec, drawn:

    ┌──────────────┬───────────────────────────────────────────────────────────────────────────┐
    │ fold         │ the customer's behaviour, written by the fold                             │
    │   times   i8 │ first_seen last_seen event_time row_watermark decided_at terminated_at    │
    │   kinds      │ kind_last i8[K]  kind_count u4[K]                                         │
    │   windows    │ tile_head i8[W]  tile_sum f4[V,T]  tile_count u2[K,T]                     │
    │   rhythm     │ gap_mean f8  gap_m2 f8  gap_count u4  day_bits i8[B]  day_head i4         │
    │   decays     │ decay f4[D,H]      values  value_last f4[V]                               │
    │   attributes │ attribute_at i8[A]  attribute_value f4[A]                                 │
    │   sequence   │ ring_value f4[L]  ring_gap f4[L]  ring_count u2[L]  ring_kind u1[L]       │
    │   duplicates │ recent_id u8[R]                                                           │
    │   counters   │ activity_count late_count u4  ring_head recent_head silence_index u1 …    │
    ├──────────────┼───────────────────────────────────────────────────────────────────────────┤
    │ policy       │ the episode, written by `stream/policy.py`                                │
    │   times   i8 │ episode_opened_at below_exit_at cooldown_until scored_at sequence         │
    │   state      │ score f4  episode_state u1                                                │
    ├──────────────┼───────────────────────────────────────────────────────────────────────────┤
    │ model        │ nothing yet: what a model will carry from event to event                  │
    └──────────────┴───────────────────────────────────────────────────────────────────────────┘
    K kinds · W windows · T tiles of all windows · V kinds with a value · D kinds with decays · H half-lives
    L sequence entries · B 64-day words · A attributes · R remembered event ids

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

from ebbtide.featurestore.record.arguments import ROLES, SCORES, Plan
from ebbtide.featurestore.spec import Kind, Spec

FOLD_VERSION = 1
"""Raise it when the fold makes other bytes of the same events; `tests/golden` notices."""
POLICY_VERSION = 1
"""Raise it when the policy reads its section otherwise; 1 to 255, since it stands in every stored record."""

Rows = NDArray[np.void]
"""A structured array of records, shape [n], of a layout's dtype."""

Field = tuple[str, str, tuple[int, ...]]
"""Name, dtype of an entry, shape."""

_EPISODE: list[Field] = [
    ("episode_opened_at", "<i8", ()), ("below_exit_at", "<i8", ()), ("cooldown_until", "<i8", ()),
    ("scored_at", "<i8", ()), ("sequence", "<i8", ()), ("score", "<f4", ()), ("episode_state", "u1", ()),
]  # fmt: skip

EPISODE_FIELDS = tuple(name for name, _, _ in _EPISODE)
"""What `stream/policy.py` keeps in the record; the fold only clears them, the model never sees them."""

BOOKKEEPING_FIELDS = (
    "recent_id",
    "recent_head",
    "silence_index",
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

    `tile_start` int64[W]: first tile of each window. `value_slot`, `decay_slot`, `attribute_slot` int64[K]: the
    slot of each kind in `tile_sum`/`value_last`, `decay`, `attribute_value`, or -1.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        kinds = spec.kinds
        self.tile_start = np.cumsum([0, *(window.tiles for window in spec.windows)])[:-1].astype(np.int64)
        self.tiles = sum(window.tiles for window in spec.windows)
        self.value_slot = _slots(kind.value is not None and kind.role != "attribute" for kind in kinds)
        self.decay_slot = _slots(
            kind.decay and kind.role in ("activity", "contact") and bool(spec.half_lives_ms) for kind in kinds
        )
        self.attribute_slot = _slots(kind.role == "attribute" for kind in kinds)
        self._fields = {"fold": _padded("fold", self._fold_fields()), "policy": _padded("policy", _EPISODE)}
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
        return Plan(
            role=np.array([ROLES[kind.role] for kind in spec.kinds], np.uint8),
            score=np.array([SCORES[kind.score] for kind in spec.kinds], np.uint8),
            hop=np.array([window.hop_ms for window in spec.windows], np.int64),
            tiles=np.array([window.tiles for window in spec.windows], np.int64),
            tile_start=self.tile_start,
            value_slot=self.value_slot,
            decay_slot=self.decay_slot,
            attribute_slot=self.attribute_slot,
            half_life=np.array(spec.half_lives_ms, np.float64),
            silence=np.array(spec.silences_ms, np.int64),
            values=dtype["value_last"].shape[0],
            decays=dtype["decay"].shape[0],
            day_words=dtype["day_bits"].shape[0],
            dedupe=dtype["recent_id"].shape[0],
            memory=spec.memory_ms,
            longest_window=spec.longest_window_ms,
            coalesce=spec.sequence.coalesce_ms,
            score_every=spec.score_every_ms,
            min_events=spec.eligibility.min_events,
            min_tenure=spec.eligibility.min_tenure_ms,
            max_silence=spec.eligibility.max_silence_ms or spec.memory_ms,
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
            if name not in defaults or value != defaults[name]
        }
        return {"plan": numbers, "kinds": [_names(kind) for kind in self.spec.kinds]}

    def _fold_fields(self) -> list[Field]:
        spec, k, t = self.spec, len(self.spec.kinds), self.tiles
        values, decays = _count(self.value_slot), _count(self.decay_slot)
        attributes, half_lives = _count(self.attribute_slot), len(spec.half_lives_ms)
        length, windows = spec.sequence.length, len(spec.windows)
        day_words = -(-max(spec.days_active, default=0) // 64)
        return [
            ("first_seen", "<i8", ()), ("last_seen", "<i8", ()), ("event_time", "<i8", ()),
            ("row_watermark", "<i8", ()), ("decided_at", "<i8", ()), ("terminated_at", "<i8", ()),
            ("gap_mean", "<f8", ()), ("gap_m2", "<f8", ()),
            ("kind_last", "<i8", (k,)), ("tile_head", "<i8", (windows,)), ("day_bits", "<i8", (day_words,)),
            ("attribute_at", "<i8", (attributes,)), ("recent_id", "<u8", (spec.dedupe,)),
            ("kind_count", "<u4", (k,)), ("decay", "<f4", (decays, half_lives)), ("value_last", "<f4", (values,)),
            ("tile_sum", "<f4", (values, t)), ("attribute_value", "<f4", (attributes,)),
            ("ring_value", "<f4", (length,)), ("ring_gap", "<f4", (length,)),
            ("activity_count", "<u4", ()), ("gap_count", "<u4", ()), ("late_count", "<u4", ()),
            ("day_head", "<i4", ()),
            ("tile_count", "<u2", (k, t)), ("ring_count", "<u2", (length,)), ("ring_head", "<u2", ()),
            ("ring_kind", "u1", (length,)), ("recent_head", "u1", ()), ("silence_index", "u1", ()),
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
    for name, usual in (("value", None), ("attribute", None), ("categories", ()), ("stamp", "as_is")):
        if getattr(kind, name) != usual:
            named[name] = getattr(kind, name)
    return named


def _slots(chosen: Iterable[bool]) -> NDArray[np.int64]:
    flags = np.fromiter(chosen, bool)
    return np.where(flags, np.cumsum(flags) - 1, -1).astype(np.int64)


def _count(slots: NDArray[np.int64]) -> int:
    return int((slots >= 0).sum())
