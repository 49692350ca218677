"""What the features should say of a life (`oracle.py`), by the same rules: from their definitions, slowly and apart.

Every figure is a question asked of the list of events; nothing is shared with `model/graph/features.py`.
"""

import math
from datetime import timedelta

from ebbtide.featurestore.kinds import Kind
from tests.support.oracle.oracle import DAY, Life, hours_into_week, local_clock


def features(life: Life, as_of: int) -> dict[str, float]:
    """Every feature of `featurestore/record/features.py` by name, in natural units."""
    spec, out = life.spec, {}
    gaps, seen = life.log_gaps, bool(life.activity)
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    usual = math.expm1(mean) * 1000 / DAY if gaps else 0.0
    silence = (as_of - life.last_seen) / DAY if seen else 0.0
    out["silence"] = silence
    out["tenure"] = (as_of - life.first_seen) / DAY if seen else 0.0
    out["activity_total"] = float(len(life.activity))
    out["gap_usual"] = usual
    out["gap_spread"] = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) if gaps else 0.0
    out["gap_missing"] = float(not gaps)
    out["silence_ratio"] = silence / usual if gaps else 0.0
    if spec.targets and spec.targets[0].churn_when == "absent":
        out[f"{spec.targets[0].name}_silence"] = (as_of - life.armed_at) / DAY if life.armed_at else 0.0
    for target in spec.targets[1:]:
        last = life.last_of(target)
        out[f"{target.name}_silence"] = (as_of - last) / DAY if last else 0.0
        out[f"{target.name}_unseen"] = float(not last)
    if spec.week is not None:
        out |= _week(life, as_of)
    for days in spec.days_active:
        out[f"active_days_{days}d"] = float(life.days_active(days, as_of))
    for k, kind in enumerate(spec.kinds):
        if kind.role in ("activity", "contact") and kind.features:
            out |= _counted(life, k, kind, as_of)
        elif kind.role == "attribute":
            out |= _attribute(life, k, kind, as_of)
    return out


def _counted(life: Life, k: int, kind: Kind, as_of: int) -> dict[str, float]:
    out = {}
    counts = {}
    for w, window in enumerate(life.spec.windows):
        count = counts[window.length_ms] = life.count(k, w, as_of)
        out[f"{kind.name}_count_{window.words}"] = float(count)
        for column, reading in enumerate(kind.readings):
            for name, figure in _windowed(life, k, column, w, as_of, count).items():
                named = "_".join(part for part in (kind.name, reading.name, name) if part)
                out[f"{named}_{window.words}"] = figure
    for short, long in life.spec.trends:
        pace = counts[short] / short, counts[long] / long
        out[f"{kind.name}_trend_{_words(short)}_{_words(long)}"] = pace[0] / pace[1] if pace[1] else 0.0
    for column, reading in enumerate(kind.readings):
        if "last" in reading.aggregate:
            named = "_".join(part for part in (kind.name, reading.name, "last") if part)
            out[named] = life.last_value(k, column) or 0.0
    latest = max((event.time for event in life.of(k)), default=0)
    out[f"{kind.name}_since"] = (as_of - latest) / DAY if latest else 0.0
    out[f"{kind.name}_never"] = float(not latest)
    for half_life in life.spec.half_lives_ms if kind.decay else ():
        out[f"{kind.name}_decay_{_words(half_life)}"] = life.decay(k, half_life, as_of)
    return out


def _windowed(life: Life, k: int, column: int, w: int, as_of: int, count: int) -> dict[str, float]:
    """A value's figures in a window, by the name of the aggregation (and of the category)."""
    reading = life.spec.kinds[k].readings[column]
    total, largest = life.sum(k, w, as_of, column), life.largest(k, w, as_of, column)
    figures = {
        "sum": total,
        "mean": total / count if count else 0.0,
        "max": 0.0 if largest is None else largest,
        "distinct": linear_count(life.distinct(k, w, as_of, column)),
    }
    out = {name: figure for name, figure in figures.items() if name in reading.aggregate}
    if "share" in reading.aggregate:
        for code, category in enumerate(reading.categories, 1):
            of = life.of_category(k, w, as_of, column, code)
            out[f"{category}_share"] = of / count if count else 0.0
    return out


def linear_count(values: set[float]) -> float:
    """How many there are, as 64 bits tell it of which each value sets the one that its last six binary digits name."""
    clear = 64 - len({int(value) % 64 for value in values})
    return 64 * math.log(64 / max(clear, 0.5))


def _week(life: Life, as_of: int) -> dict[str, float]:
    """Walks by the zone's own clock from the last arming to `as_of`, an hour, or what is left of one, at a time."""
    week = life.spec.week
    assert week is not None
    counts, armed = life.week, life.armed_at
    total, hours = sum(counts), 168 / week.buckets
    if not total:
        return {"week_now": 0.0, "week_passed": 0.0}
    weight = [count / total for count in counts]
    at, end, hour = local_clock(armed, week.zone), local_clock(as_of, week.zone), timedelta(hours=1)
    whole = max(0, (end - at) // timedelta(weeks=1)) if armed else 0
    at += whole * timedelta(weeks=1)
    passed = float(whole)
    while armed and at < end:
        step = min(at.replace(minute=0, second=0, microsecond=0) + hour, end) - at
        passed += weight[int((at.weekday() * 24 + at.hour) // hours)] * (step / hour) / hours
        at += step
    return {
        "week_now": weight[int(hours_into_week(as_of, week.zone) // hours)] * week.buckets,
        "week_passed": passed,
    }


def _attribute(life: Life, k: int, kind: Kind, as_of: int) -> dict[str, float]:
    last = life.last_value(k)
    value = math.nan if last is None else last
    out = {f"{kind.name}_missing": float(last is None)}
    if kind.attribute == "category":
        for code, category in enumerate(kind.categories, start=1):
            out[f"{kind.name}_is_{category}"] = float(value == code)
    elif kind.attribute == "date":
        out[f"{kind.name}_until"] = value - as_of / DAY if last is not None else 0.0
    else:
        out[kind.name] = value if last is not None else 0.0
    return out


def _words(ms: int) -> str:
    """A duration as features are named by it: whole weeks from eight on, else the longest whole unit."""
    for unit, size in (("w", 7 * DAY), ("d", DAY), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms % size == 0 and (unit != "w" or ms >= 8 * size):
            return f"{ms // size}{unit}"
    return f"{ms}ms"
