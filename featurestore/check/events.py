"""What of an event log does not fit a spec, in words: what `ebbtide spec check` says.

It knows the traps that logs have set before: event types a letter away from the spec's, a value column that no event
fills, our own mails as signs of life, one customer who is everybody without an id. What is about time is in
`times.py`. It changes nothing, and refuses to mend silently what only its user can decide.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.check.finding import SEVERITIES, Finding, count, error, note, percent, warning
from ebbtide.featurestore.check.times import roles, time_findings
from ebbtide.featurestore.customer import SEPARATOR, Composite, first_of, split
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.files.event_log import EventLog, Remedies
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.kinds import Kind, Value
from ebbtide.featurestore.record.costs import costs
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec

RECORD_BYTES_MAX = 1024
"""What a customer may cost by default: a million customers a gigabyte."""
SHOWN_MAX = 10
_NOBODY = {
    "0",
    "-1",
    "null",
    "none",
    "nan",
    "na",
    "n/a",
    "undefined",
    "unknown",
    "anonymous",
    "guest",
    "test",
    "\\n",
}
_OURS = re.compile(r"mail|newsletter|campaign|push|sms|notif|reminder", re.IGNORECASE)
_DECIMAL_ID = re.compile(r"\d+\.0+")
_ROUNDED_ID = re.compile(r"\d([.,]\d+)?[eE]\+?\d{1,2}")
_THEIRS = re.compile(r"open|click|repl|read|view|redeem|subscri", re.IGNORECASE)
_EVERY = {"first": "", "whole": " in its partition, and has to be in every one"}
_OF_THEM = "account|subscription|membership|contract|plan"
_LEAVING = re.compile(
    rf"unsubscrib|churn|deactivat|(clos|delet|cancel|terminat).*({_OF_THEM})|({_OF_THEM}).*(clos|delet|cancel|terminat)",
    re.IGNORECASE,
)


def check(path: Path | str | Sequence[Path | str], spec: Spec) -> list[Finding]:
    """Findings about an event file under a spec, the gravest first. A file that cannot be read is a finding, too."""
    try:
        log = read_log(path, spec, tolerant=True)
    except SpecError as problem:
        return [error("unreadable", f"{problem}.")]
    return check_log(log, spec)


def check_log(log: EventLog, spec: Spec) -> list[Finding]:
    """Findings about a log that was read with `tolerant=True`, the gravest first."""
    findings = [*_rows(log, spec), *_types(log, spec)]
    if len(log):
        findings += [*time_findings(log, spec), *_kinds(log, spec), *_values(log, spec)]
        findings += [*_customers(log, spec), *_duplicates(log)]
    findings += _record(spec)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _rows(log: EventLog, spec: Spec) -> Iterator[Finding]:
    problems = log.problems
    if not log.rows:
        yield error("empty", "The file has no rows.")
    elif not len(log):
        yield error("nothing_fits", f"None of the {count(log.rows, 'row')} is an event under this spec.")
    for reason, n in problems.counts.most_common():
        if reason is not Reason.UNKNOWN_TYPE:  # said by type, below
            first, remedies = [p for p in problems.first if p.reason is reason], Remedies(spec)
            remedies.look(first)
            where = "".join(
                f"{';' if i else ':'} {problems.place(p)}: {p.detail}" for i, p in enumerate(first[:3])
            )
            cure = f" ({'; '.join(remedies.found)})" if remedies.found else ""
            yield error(
                reason, f"{count(n, 'row')} ({percent(n, log.rows)}) cannot be read ({reason}){where}{cure}."
            )


def _types(log: EventLog, spec: Spec) -> Iterator[Finding]:
    known = {event_type.casefold(): event_type for event_type in spec.kind_of_type}
    unknown = log.problems.unknown_types
    say, fate = error, "which no kind covers: they would be dead letters (or unknown: ignore)"
    if spec.unknown == "ignore":
        say, fate = note, "which no kind covers: they are ignored, as the spec says"
    for event_type, n in unknown.most_common(SHOWN_MAX):
        near = difflib.get_close_matches(event_type.strip().casefold(), known, n=1, cutoff=0.75)
        guess = f" Is it {known[near[0]]!r}?" if near else ""
        how = warning if near and say is note else say
        yield how("unknown_type", f"{count(n, 'event')} of type {event_type[:80]!r}, {fate}.{guess}")
    if len(unknown) > SHOWN_MAX:
        others = count(len(unknown) - SHOWN_MAX, "more event type")
        yield say("unknown_type", f"{others}, {fate}. Is the right field mapped to type?")


def _record(spec: Spec) -> Iterator[Finding]:
    size = Layout(spec).itemsize
    if size <= RECORD_BYTES_MAX:
        yield note("record_bytes", f"A customer's record takes {size:,} bytes: {_dearest(spec)}.")
    else:
        cure = "fewer kinds, windows or tiles or a shorter sequence make it smaller"
        text = f"A customer's record takes {size:,} bytes, more than {RECORD_BYTES_MAX:,} ({_dearest(spec)}): {cure}."
        yield warning("record_bytes", text)


def _dearest(spec: Spec) -> str:
    """The bytes of each line of the spec, the dearest first."""
    lines = sorted(costs(Layout(spec)), key=lambda line: -line[1])
    return ", ".join(f"{line.strip()} {size:,}" for line, size in lines)


def _kinds(log: EventLog, spec: Spec) -> Iterator[Finding]:
    counts = np.bincount(log.events.kind, minlength=len(spec.kinds))
    for kind, n in zip(spec.kinds, counts.tolist(), strict=True):
        if not n:
            types = ", ".join(map(repr, kind.types))
            text = f"Kind {kind.name} never occurs (types {types}): its features will be constant."
            yield warning("kind_never", text)
        words = " ".join((kind.name, *kind.types))
        if kind.role != "activity":
            continue
        if _LEAVING.search(words):
            text = f"Kind {kind.name} sounds like a customer who leaves, and counts as a sign of life"
            yield warning("role", f"{text}: role: terminal?")
        elif _OURS.search(words) and not _THEIRS.search(words):
            text = (
                f"Kind {kind.name} sounds like something that you do, and counts as the customer's activity"
            )
            yield warning("role", f"{text}: role: contact?")
    if not counts[roles(spec, "activity")].any():
        yield error(
            "no_activity", "No event is of a kind with role activity: there is no silence and no label."
        )


def _values(log: EventLog, spec: Spec) -> Iterator[Finding]:
    for code, kind in enumerate(spec.kinds):
        columns = log.events.values[log.events.kind == code].T
        for reading, values in zip(kind.readings, columns, strict=False):  # others have more values
            if len(values):
                yield from _value(kind, reading, values, spec)


def _value(kind: Kind, reading: Value, values: NDArray[np.float64], spec: Spec) -> Iterator[Finding]:
    where = _source(reading, spec)
    missing = float(np.isnan(values).mean())
    if missing == 1:
        yield error("value_never", f"Kind {kind.name} reads {where}, which none of its events has.")
    elif missing > 0.01:
        how = warning if missing > 0.2 else note
        text = f"Kind {kind.name} reads {where}, which {percent(missing)} of its events don't have."
        yield how("value_missing", text)
    values = values[~np.isnan(values)]
    if reading.reads == "category" and (values == 0).any():
        unlisted = float((values == 0).mean())
        how = warning if unlisted > 0.05 and kind.role == "attribute" else note
        text = f"{percent(unlisted)} of the values of {kind.name} are none of its categories"
        yield how("category_unlisted", f"{text} ({', '.join(reading.categories)}).")
    elif reading.attribute is None and len(values) > 1 and np.ptp(values) == 0:
        always = f"{values[0]:g}" if reading.reads == "number" else "the same"
        text = f"Kind {kind.name} reads {where}, which is always {always}: nothing to learn from."
        yield note("value_constant", text)


def _source(reading: Value, spec: Spec) -> str:
    column = spec.mapping.value if reading.path == "value" else reading.path
    return "value" if column == "value" else f"value from {column}"


def _customers(log: EventLog, spec: Spec) -> Iterator[Finding]:
    customers, m = log.events.customers, len(log.events.customers)
    events = np.bincount(log.events.customer, minlength=m)
    most = int(events.max())
    if m > 10 and most > max(0.1 * len(log), 100 * float(np.median(events))):
        how = warning if most > 0.3 * len(log) else note
        text = f"One customer has {percent(most, len(log))} of all events ({most:,})"
        yield how("one_customer", f"{text}: a shared account, a robot, or the id of everybody who has none?")
    if spec.customer is not None:
        yield _composite(customers, spec.customer)
    ids = (
        list(dict.fromkeys(part for customer in customers for part in split(customer)))
        if spec.customer
        else customers
    )
    if nobody := [one for one in ids if one.strip().casefold() in _NOBODY or not one.strip()]:
        text = f"Customers that look like a missing id: {', '.join(map(repr, nobody[:SHOWN_MAX]))}."
        yield warning("nobody", text)
    if alike := m - len({customer.strip().casefold() for customer in customers}):
        text = f"Ids that differ from another in case or blanks only: {alike:,}. Are they one customer?"
        yield warning("alike", text)
    if decimals := [one for one in ids if _DECIMAL_ID.fullmatch(one)]:
        text = f"Ids that are whole numbers written as decimals: {len(decimals):,}, such as {decimals[0]!r}"
        yield warning("decimal_ids", f"{text}. A stream that writes them otherwise means other customers.")
    if rounded := [one for one in ids if _ROUNDED_ID.fullmatch(one)]:
        text = f"Ids in scientific notation: {len(rounded):,}, such as {rounded[0]!r}: a spreadsheet or R has written"
        text += " numbers so, and may have rounded several customers to one. Export them as text."
        yield warning("rounded_ids", text)
    active = np.isin(log.events.kind, roles(spec, "activity"))
    activities = np.bincount(log.events.customer[active], minlength=m)
    single = float((activities == 1).sum() / max(1, (activities > 0).sum()))
    if single > 0.2:
        least = spec.eligibility.min_events
        fate = f"eligibility leaves them out (min_events: {least})"
        if least < 2:
            fate = "they are scored from that one on; eligibility: {min_events: 2} would wait for a second"
        text = f"{percent(single)} of the customers with any activity have a single one: {fate}."
        yield note("single", text)


def _composite(customers: Sequence[str], composite: Composite) -> Finding:
    """Who a customer is, as the stream has to say it, and how many a tombstone of a first part forgets."""
    of_first = Counter(map(first_of, customers))
    first, key = composite.fields[0], SEPARATOR.join(composite.fields)
    text = f"A customer is {' × '.join(composite.fields)}, written {key}: {count(len(customers), 'customer')}"
    text += (
        f" of {len(of_first):,} {first}, at most {max(of_first.values()):,} of one. The Kafka key has to be"
    )
    text += f" {first}, in a part ~ written ~0 and / written ~1" if composite.key == "first" else f" {key}"
    return note("composite", f"{text}; a tombstone of {first} forgets all of theirs{_EVERY[composite.key]}.")


def _duplicates(log: EventLog) -> Iterator[Finding]:
    events = log.events
    values = (column.copy().view(np.int64) for column in events.values.T)
    columns = (events.customer, events.kind, events.time, *values, events.event_id)
    repeats = len(log) - len(np.unique(np.rec.fromarrays(columns)))
    if repeats:
        how = warning if repeats > 0.02 * len(log) else note
        fate = (
            "they are folded once where they have an event id"
            if log.ids
            else "each counts, having no event id"
        )
        share = percent(repeats, len(log))
        text = f"{count(repeats, 'event')} ({share}) that repeat another in all that the spec reads: {fate}."
        yield how("duplicates", text)
    if log.ids is None:
        yield note("no_event_id", "No event has an event id: what a producer sends twice will count twice.")
        return
    if without := log.ids.count(""):
        yield note("event_id_missing", f"{percent(without, len(log))} of the events have no event id.")
    ids = events.event_id[events.event_id != 0]
    if (reused := len(ids) - len(np.unique(ids)) - repeats) > 0.01 * len(ids):
        text = f"{count(reused, 'event')} carry the event id of a different one"
        yield error(
            "event_id_reused", f"{text}, and may be skipped as its duplicate: is the right field mapped?"
        )
