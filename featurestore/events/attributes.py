"""An attribute's value as the float that a record keeps; parsing, not a feature."""

from ebbtide.featurestore.spec import Kind
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import iso_days


def encode_attribute(kind: Kind, raw: object) -> float:
    """An attribute's value as the float the record keeps: a number as it is, a category as 1 + its index in the spec
    (0: not listed), a date (RFC 3339 or YYYY-MM-DD, or epoch ms) as days since 1970. NaN where it is missing.

    Raises ValueError when the value cannot be read."""
    if raw is None:
        return float("nan")
    if kind.attribute == "category":
        text = str(raw)
        return 1.0 + kind.categories.index(text) if text in kind.categories else 0.0
    if kind.attribute == "date":
        return float(raw) / DAY_MS if isinstance(raw, int | float) else iso_days(str(raw))
    return float(raw)  # type: ignore[arg-type]  # float() itself refuses what is no number
