"""What each line of a spec costs: the bytes of a record by what asked for them."""

import numpy as np

from ebbtide.featurestore.aggregations import BY_NAME, Store
from ebbtide.featurestore.record.layout import Layout


def costs(layout: Layout) -> list[tuple[str, int]]:
    """(line, bytes), in the order of a spec; together `layout.itemsize`. Tiles are charged to the kinds and values they
    hold, not to the windows that they are tiles of."""
    spec, of = layout.spec, layout.dtype
    lines: list[tuple[str, int]] = []
    for k, kind in enumerate(spec.kinds):
        own = _entry(layout, "kind_last") + _entry(layout, "kind_count")
        own += _row(layout, "tile_count") if layout.count_slot[k] >= 0 else 0
        own += _row(layout, "decay") if layout.decay_slot[k] >= 0 else 0
        if layout.attribute_slot[k] >= 0:
            own += _entry(layout, "attribute_at") + _entry(layout, "attribute_value")
        lines.append((f"kind {kind.name}", own))
        for value in kind.readings:
            for store in value.stores if kind.counted else ():
                names = "/".join(name for name in value.aggregate if _keeps(name, store))
                said = f"  {names} of {value.noun}"
                lines.append((said, value.rows(store) * _row(layout, store.field)))
    parts = {
        f"windows ({layout.tiles} tiles)": ["tile_head"],
        "days_active": ["day_bits"],
        "week": ["week_count"],
        "targets": ["target_last", "further_last", "further_index"],
        f"sequence ({spec.sequence.length})": [
            "ring_value",
            "ring_gap",
            "ring_count",
            "ring_kind",
            "ring_head",
        ],
        f"dedupe ({spec.dedupe})": ["recent_id"],
    }
    lines += [(line, sum(of[name].itemsize for name in names)) for line, names in parts.items()]
    rest = layout.itemsize - sum(size for _, size in lines)
    return [*(line for line in lines if line[1]), ("every record: times, rhythm, episode", rest)]


def _keeps(name: str, store: Store) -> bool:
    return BY_NAME[name].store == store


def _row(layout: Layout, field: str) -> int:
    """Bytes of one row of a field."""
    of = layout.dtype[field]
    return int(np.prod(of.shape[1:], dtype=np.int64)) * of.base.itemsize


def _entry(layout: Layout, field: str) -> int:
    return layout.dtype[field].base.itemsize
