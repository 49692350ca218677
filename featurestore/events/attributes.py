"""A value as the float that a batch keeps; parsing, not a feature."""

import re

from xxhash import xxh3_64_intdigest

from ebbtide.featurestore.kinds import Value
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import iso_days

HASH = re.compile(r"#([0-9a-f]{14})")


def encode_value(value: Value, raw: object) -> float:
    """A value as a float: a number as it is, a category as 1 + its index in the spec (0: not listed), a date (RFC 3339
    or YYYY-MM-DD, or epoch ms) as days since 1970, any text as a hash of it, below 2^53, of which `hash_text` is the
    text. NaN where it is missing.

    Raises ValueError when the value cannot be read."""
    if raw is None:
        return float("nan")
    if value.reads == "category":
        text = str(raw)
        return 1.0 + value.categories.index(text) if text in value.categories else 0.0
    if value.reads == "text":
        text = str(raw)
        known = HASH.fullmatch(text)
        return float(int(known[1], 16) if known else xxh3_64_intdigest(text.encode()) >> 11)
    if value.reads == "date":
        return float(raw) / DAY_MS if isinstance(raw, int | float) else iso_days(str(raw))
    return float(raw)  # type: ignore[arg-type]  # float() itself refuses what is no number


def hash_text(number: float) -> str:
    """A text whose hash is the number: what stands for a text of which a log has kept no more than its hash."""
    return f"#{int(number):014x}"
