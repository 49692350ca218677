"""One fixed-size binary record a customer, generated from the spec.

The *names* of the fields are the same for every spec; only their shapes follow it. So one compiled fold and one store
serve every spec, and a record read in a notebook explains itself. Fields are ordered by alignment (8-byte ones first)
and the record is padded to a multiple of 8 bytes, so that a record is never read unaligned. The default spec, drawn:

    ┌──────────────┬───────────────────────────────────────────────────────────────────────────┐
    │ times   i8   │ first_seen last_seen event_time clock decided_at terminated_at            │
    │ episode i8   │ episode_opened_at below_exit_at cooldown_until scored_at sequence          │
    │ kinds        │ kind_last i8[K]  kind_count u4[K]                                         │
    │ windows      │ tile_head i8[W]  tile_sum f4[V,T]  tile_count u2[K,T]                     │
    │ rhythm       │ gap_mean f8  gap_m2 f8  gap_count u4  day_bits i8[B]  day_head i4         │
    │ decays       │ decay f4[D,H]      values  value_last f4[V]                               │
    │ attributes   │ attribute_at i8[A]  attribute_value f4[A]                                 │
    │ sequence     │ ring_value f4[L]  ring_gap f4[L]  ring_count u2[L]  ring_kind u1[L]       │
    │ duplicates   │ recent_id u8[R]                                                           │
    │ counters     │ activity_count late_count u4  ring_head recent_head silence_index u1 …     │
    └──────────────┴───────────────────────────────────────────────────────────────────────────┘
    K kinds · W windows · T tiles of all windows · V kinds with a value · D kinds with decays · H half-lives
    L sequence entries · B 64-day words · A attributes · R remembered event ids

A new customer is all zero bytes: time 0 means never, which is why event times start at 1.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.spec import Spec

Rows = NDArray[np.void]
"""A structured array of records, shape [n], of a layout's dtype."""

EPISODE_FIELDS = (
    "episode_opened_at", "below_exit_at", "cooldown_until", "scored_at", "sequence", "score", "episode_state",
)  # fmt: skip
"""What `stream/policy.py` keeps in the record; the fold only clears them, the model never sees them."""

BOOKKEEPING_FIELDS = ("recent_id", "recent_head", "silence_index", "decided_at", "clock", "late_count")
"""What the fold keeps for itself; the model never sees these either."""


class Layout:
    """The record layout of one spec: `dtype`, its size, its id, and where each kind's slots lie.

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
        self.dtype = self._dtype()

    @property
    def itemsize(self) -> int:
        """Bytes a record."""
        return self.dtype.itemsize

    @cached_property
    def id(self) -> str:
        """16 hex digits; state and models of another id are refused."""
        return self.spec.state_id

    @cached_property
    def model_fields(self) -> tuple[str, ...]:
        """Names of the record fields that the SavedModel takes as inputs, in record order."""
        hidden = {*EPISODE_FIELDS, *BOOKKEEPING_FIELDS, "padding"}
        return tuple(
            name for name in self.dtype.names or () if name not in hidden and self.dtype[name].itemsize > 0
        )

    def empty(self, n: int) -> Rows:
        """`n` new customers: zero bytes."""
        return np.zeros(n, self.dtype)

    def _dtype(self) -> np.dtype[np.void]:
        spec, k, t = self.spec, len(self.spec.kinds), self.tiles
        values, decays = _count(self.value_slot), _count(self.decay_slot)
        attributes, half_lives = _count(self.attribute_slot), len(spec.half_lives_ms)
        length, windows = spec.sequence.length, len(spec.windows)
        day_words = -(-max(spec.days_active, default=0) // 64)
        fields: list[tuple[str, str, tuple[int, ...]]] = [
            ("first_seen", "<i8", ()), ("last_seen", "<i8", ()), ("event_time", "<i8", ()), ("clock", "<i8", ()),
            ("decided_at", "<i8", ()), ("terminated_at", "<i8", ()),
            ("episode_opened_at", "<i8", ()), ("below_exit_at", "<i8", ()), ("cooldown_until", "<i8", ()),
            ("scored_at", "<i8", ()), ("sequence", "<i8", ()),
            ("gap_mean", "<f8", ()), ("gap_m2", "<f8", ()),
            ("kind_last", "<i8", (k,)), ("tile_head", "<i8", (windows,)), ("day_bits", "<i8", (day_words,)),
            ("attribute_at", "<i8", (attributes,)), ("recent_id", "<u8", (spec.dedupe,)),
            ("kind_count", "<u4", (k,)), ("decay", "<f4", (decays, half_lives)), ("value_last", "<f4", (values,)),
            ("tile_sum", "<f4", (values, t)), ("attribute_value", "<f4", (attributes,)),
            ("ring_value", "<f4", (length,)), ("ring_gap", "<f4", (length,)),
            ("activity_count", "<u4", ()), ("gap_count", "<u4", ()), ("late_count", "<u4", ()),
            ("day_head", "<i4", ()), ("score", "<f4", ()),
            ("tile_count", "<u2", (k, t)), ("ring_count", "<u2", (length,)), ("ring_head", "<u2", ()),
            ("ring_kind", "u1", (length,)), ("recent_head", "u1", ()), ("silence_index", "u1", ()),
            ("episode_state", "u1", ()),
        ]  # fmt: skip
        packed = np.dtype([(name, base, shape) for name, base, shape in fields])
        padding = -packed.itemsize % 8
        return np.dtype(
            [(name, base, shape) for name, base, shape in [*fields, ("padding", "V1", (padding,))]]
        )


def _slots(chosen: "object") -> NDArray[np.int64]:
    flags = np.fromiter(chosen, bool)  # type: ignore[call-overload]  # a generator of bools, one a kind
    return np.where(flags, np.cumsum(flags) - 1, -1).astype(np.int64)


def _count(slots: NDArray[np.int64]) -> int:
    return int((slots >= 0).sum())
