"""What of a log's times does not fit a spec: unit, order, resolution, span, and the rhythm of its customers.

The half of `events.py` that is about time. It knows the traps: seconds read as milliseconds, a coupon stamped at
midnight, before the basket that it belongs to, a horizon that nothing in the log can confirm, or that most customers
outlive. It refuses to know files, and to choose a horizon: it says what each would mean.
"""

from collections.abc import Iterable, Iterator
from datetime import date

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.check.finding import Finding, count, days, error, note, percent, warning
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.kinds import Role
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS, format_duration
from ebbtide.featurestore.times.timestamps import format_date, format_time

_YEAR_MS = 365 * DAY_MS
_LAST_YEAR = 2105
_UNITS = {"ns": "nanoseconds", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}
LONG_GAPS_MAX = 0.1
"""More returns than this after the horizon: silence of that length is how these customers live."""
HORIZONS_MIN = 4
"""Training, calibration and test follow each other in time, a horizon apart; the last one waits for its labels."""
NAMED_MAX = 3
"""Events that are named where they are counted."""
SEEN_MIN = 100
"""Fewer events or gaps than this say nothing about a habit."""


def time_findings(log: EventLog, spec: Spec) -> list[Finding]:
    """Findings about the times of a log of at least one event. After a wrong unit, no other time makes sense."""
    units = list(_units(log, spec))
    if _wrong(units) is not None:
        return units
    return [*units, *_order(log, spec), *_resolution(log, spec), *_span(log, spec), *_rhythm(log, spec)]


def wrong_unit(log: EventLog, spec: Spec) -> Finding | None:
    """What says that the times of a log are surely of another unit than the spec says."""
    return _wrong(_units(log, spec)) if len(log) else None


def _wrong(units: Iterable[Finding]) -> Finding | None:
    return next((finding for finding in units if finding.severity == "error"), None)


def roles(spec: Spec, role: Role) -> list[int]:
    """Indices of the kinds with a role."""
    return [code for code, kind in enumerate(spec.kinds) if kind.role == role]


def _units(log: EventLog, spec: Spec) -> Iterator[Finding]:
    first, last = int(log.events.time.min()), log.known_until - 1
    size = f"{count(len(log), 'event')} of {count(len(log.events.customers), 'customer')}"
    yield note("size", f"{size}, {format_date(first)} to {format_date(last)}.")
    early = np.flatnonzero(log.events.time < _YEAR_MS)
    if last < _YEAR_MS:
        yield error("unit", f"All events lie in 1970: {_meant(log, last, spec)}.")
    elif last > (_LAST_YEAR - 1970) * _YEAR_MS:
        yield error("unit", f"The last event is of {format_date(last)}: is mapping.ts_format right?")
    elif len(early):
        text = f"{count(len(early), 'event')} of 1970 ({_named(log, early)})"
        if unit := _unit_among(log.events.time, spec):
            yield error(
                "unit", f"{text} would lie by the others as {unit}: write the times of all in one unit."
            )
        else:
            yield warning("unit", f"{text}: seconds among milliseconds, or a stand-in for an unknown time?")
    yield from _outliers(log)


def _meant(log: EventLog, last: int, spec: Spec) -> str:
    """What times that came out in 1970 may be, and how to say so."""
    if _compact(log):
        return 'dates such as 20260131, read as a number? Then mapping: {ts_format: "%Y%m%d"}'
    read_as, longer = _read_as(spec)
    meant = next((unit for n, unit in enumerate(longer, 1) if last * 1000**n >= _YEAR_MS), None)
    if meant is not None:
        return f"{_UNITS[meant]}, read as {_UNITS[read_as]}? Then mapping: {{ts_format: {meant}}}"
    return "is mapping.ts_format right?"


def _read_as(spec: Spec) -> tuple[str, list[str]]:
    """The unit in which a spec has times read, and those that are 1,000, 1,000², … times as long; none where it is no
    unit of these."""
    read_as = "ms" if spec.mapping.ts_format == "auto" else spec.mapping.ts_format
    if read_as not in _UNITS or spec.mapping.ts_unit is not None:
        return read_as, []
    return read_as, list(_UNITS)[list(_UNITS).index(read_as) + 1 :]


def _unit_among(times: NDArray[np.int64], spec: Spec) -> str | None:
    """The unit in which some events of 1970 would lie within a year of the others, which begin long after; None where
    in no unit, as a stand-in does."""
    early, others = times[times < _YEAR_MS], times[times >= _YEAR_MS]
    if others.min() < 10 * _YEAR_MS:
        return None
    for n, unit in enumerate(_read_as(spec)[1], 1):
        meant = early * 1000.0**n
        if ((meant >= others.min() - _YEAR_MS) & (meant <= others.max() + _YEAR_MS)).any():
            return _UNITS[unit]
    return None


def _compact(log: EventLog) -> bool:
    """Whether all times, as milliseconds or seconds, have the digits of a date."""
    times = np.unique(log.events.time)
    return any(
        bool((numbers % 1 == 0).all()) and all(map(_is_compact_date, numbers.astype(np.int64).tolist()))
        for numbers in (times, times / 1000)
    )


def _is_compact_date(number: int) -> bool:
    try:
        return date(number // 10_000, number // 100 % 100, number % 100).year >= 1900
    except ValueError:
        return False


def _outliers(log: EventLog) -> Iterator[Finding]:
    beyond = log.beyond
    if not len(beyond):
        return
    gap = days(int(log.events.time[beyond[0]]) - log.known_until + 1)
    text = f"{count(len(beyond), 'event')} ({_named(log, beyond)}), {gap} or more after all others"
    cure = "a wrong date? Mend or drop it; what is known ends without it at"
    yield warning("outlier", f"{text}: {cure} {format_date(log.known_until - 1)}.")


def _named(log: EventLog, which: NDArray[np.int64]) -> str:
    """Some events by row, customer and date."""
    events = log.events
    named = []
    for j in which[:NAMED_MAX].tolist():
        customer, when = events.customers[events.customer[j]], format_time(int(events.time[j]))
        named.append(f"{log.place(int(events.position[j]))}: customer {customer!r}, {when}")
    return "; ".join([*named, "..."] if len(which) > NAMED_MAX else named)


def _order(log: EventLog, spec: Spec) -> Iterator[Finding]:
    if spec.mapping.arrival is None:
        back = int((np.diff(log.events.position) < 0).sum())
        if back:
            steps = count(back, "step")
            text = f"The file is not in the order of time ({steps} back); it is read as if all had arrived on time."
            yield note("order", text)
        return
    late = log.arrival - log.events.time
    middle, most = np.quantile(late, (0.5, 0.99))
    shares = f"{days(middle)} in the median, {days(most)} at 99 %"
    behind = percent(float((late > DAY_MS).mean()))
    yield note("lateness", f"Events arrive {shares} after they happen; {behind} are more than a day late.")


def _resolution(log: EventLog, spec: Spec) -> Iterator[Finding]:
    events = log.events
    end = np.array([kind.stamp == "day_end" for kind in spec.kinds])
    timed = np.bincount(events.kind, (events.time + end[events.kind]) % DAY_MS != 0, len(spec.kinds)) > 0
    if not timed.any():
        yield note("day_resolution", "All events are at midnight: the log knows days, not hours.")
        if short := [window.words for window in spec.windows if window.hop_ms < DAY_MS]:
            text = f"The tiles of window {', '.join(short)} are shorter than the day that the log resolves."
            yield warning("window_short", text)
        if spec.silence.first_ms < DAY_MS:
            first = format_duration(spec.silence.first_ms)
            text = f"silence.first, {first}, is shorter than the day that the log resolves."
            yield warning("silence_short", text)
        return
    of_day = events.customer.astype(np.int64) * (1 << 32) + events.time // DAY_MS
    lively = np.isin(events.kind, [code for code in roles(spec, "activity") if timed[code]])
    for code, kind in enumerate(spec.kinds):
        own = events.kind == code
        if timed[code] or kind.stamp == "day_end" or own.sum() < SEEN_MIN:
            continue
        shared = float(np.isin(of_day[own], of_day[lively]).mean())
        text = f"Kind {kind.name} is always at midnight, other kinds are not"
        if shared > 0.5:
            trap = (
                f"and in {percent(shared)} of the cases the customer is active later that day. Dated at the day's "
                f"start it lies before what caused it, and gives the answer away: stamp: day_end?"
            )
            yield warning("midnight", f"{text}, {trap}")
        else:
            yield note("midnight", f"{text}: its days are known, not its hours.")


def _span(log: EventLog, spec: Spec) -> Iterator[Finding]:
    first, last = int(log.events.time.min()), log.known_until - 1
    span, horizon = last - first, format_duration(spec.horizon_ms)
    if span <= spec.horizon_ms:
        text = f"The log spans {days(span)}, the horizon is {horizon}: no silence is confirmed, nothing has a label."
        yield error("span", text)
        return
    until = format_date(last - spec.horizon_ms)
    yield note(
        "labels_until", f"Labels are known until {until}: the log's end less the horizon of {horizon}."
    )
    if span < HORIZONS_MIN * spec.horizon_ms:
        text = f"The log spans {days(span)}, less than {HORIZONS_MIN} horizons of {horizon}"
        yield warning("span", f"{text}: training, calibration and test slices need a horizon between them.")
    if long := [window.words for window in spec.windows if window.length_ms > span]:
        yield warning("window_long", f"Window {', '.join(long)} is longer than the log ({days(span)}).")


def _rhythm(log: EventLog, spec: Spec) -> Iterator[Finding]:
    """How long customers stay away who come back, and how many of the last ones did."""
    events = log.events
    active = np.isin(events.kind, roles(spec, "activity")) & (events.time < log.known_until)
    customer, time = events.customer[active], events.time[active]
    yield from _gaps(customer, time, spec)
    if len(time):
        before = active
        for index in range(len(spec.target_names)):
            each = spec.only_target(index)
            ours = each.target_events.of(events.kind, events.values) & (events.time < log.known_until)
            if index == 0 and spec.churn_is_absence:
                before = ours  # the primary target says who is scored
            yield from _base_rate(log, before, ours, each)


def _gaps(customer: NDArray[np.int32], time: NDArray[np.int64], spec: Spec) -> Iterator[Finding]:
    order = np.lexsort((time, customer))
    gaps = np.diff(time[order])[np.diff(customer[order]) == 0]
    gaps = gaps[gaps > spec.sequence.coalesce_ms]
    if len(gaps) < SEEN_MIN:
        return
    horizon, memory = format_duration(spec.horizon_ms), format_duration(spec.memory_ms)
    middle, most, nearly_all = np.quantile(gaps, (0.5, 0.95, 0.99))
    longer = float((gaps > spec.horizon_ms).mean())
    text = (
        f"Who comes back does so after {days(middle)} in the median, {days(most)} at 95 %; "
        f"{percent(longer)} come back after more than the horizon of {horizon}"
    )
    if longer > LONG_GAPS_MAX:
        yield warning("horizon_short", f"{text}: many whom the label counts as lost are not.")
    else:
        yield note("rhythm", f"{text}.")
    if spec.eligibility.max_silence_ms is None:
        limit = -(-int(nearly_all) // DAY_MS)
        text = f"Customers are scored however long silent, until memory ends ({memory}). 99 % of the returns come"
        cure = (
            f"eligibility: {{max_silence: {limit}d}} would give up the others"
            if limit * DAY_MS < spec.memory_ms
            else ""
        )
        yield note(
            "max_silence", f"{text} within {limit} days: {cure}." if cure else f"{text} within {limit} days."
        )
    if forgotten := int((gaps > spec.memory_ms).sum()):
        text = f"{count(forgotten, 'return')} after more than memory ({memory}) will begin a fresh record."
        yield note("memory", text)


def _base_rate(
    log: EventLog, arms: NDArray[np.bool_], ours: NDArray[np.bool_], spec: Spec
) -> Iterator[Finding]:
    """arms, ours: bool[n] over the events, those that silence counts from and those of the target."""
    customer, time = log.events.customer, log.events.time
    as_of = log.known_until - 1 - spec.horizon_ms
    since = as_of - (spec.eligibility.max_silence_ms or spec.memory_ms)
    before = np.unique(customer[arms & (time > since) & (time <= as_of)])
    if len(before) < SEEN_MIN:
        return
    came = float(np.isin(before, customer[ours & (time > as_of)]).mean())
    rate = 1 - came if spec.churn_is_absence else came
    text = (
        f"Of {count(len(before), 'customer')} who could have been scored at {format_date(as_of)}, {percent(rate)} had "
        f"{spec.churn_words} in the {format_duration(spec.horizon_ms)} after: about the base rate."
    )
    if 0.02 <= rate <= 0.98:
        yield note("base_rate", text)
    else:
        yield warning("base_rate", f"{text} So one-sided a label teaches little: another horizon?")
