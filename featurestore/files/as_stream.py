"""A log as the stream that would have brought it: the contract's own JSON, one record an event.

It knows how to say a column's number in the contract's words (an attribute's code as its category, say); it refuses to
know Kafka. The invariant: nothing is lost. Parsed again under `contract_spec`, the records are the log's columns bit
for bit, so what is streamed from a file is what training read from it.
"""

from collections.abc import Callable, Iterator
from math import isnan
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ebbtide.featurestore.customer import FIELDS, split
from ebbtide.featurestore.events.attributes import hash_text
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.kinds import Value
from ebbtide.featurestore.spec import Mapping, Spec
from ebbtide.featurestore.times.durations import DAY_MS


def contract_spec(spec: Spec) -> Spec:
    """The same spec for events in the contract's own form: whoever parses `records_of` needs it. Its state is the
    same, since a mapping is no part of a record."""
    customer = None if spec.customer is None else spec.customer.in_contract
    return spec.model_copy(update={"mapping": Mapping(), "customer": customer})


def records_of(log: EventLog, spec: Spec, start: int = 0) -> Iterator[tuple[bytes, bytes, int]]:
    """Key, value and Kafka timestamp (ms) of each event from index `start` of the log on, in arrival order."""
    events = log.events
    keys = spec.keys_of(events.customers)
    parts = len(spec.customer_fields)
    who = [
        dict(zip(FIELDS, split(customer) if parts > 1 else [customer], strict=False))
        for customer in events.customers
    ]
    put = [[_putter(value) for value in kind.readings] for kind in spec.kinds]
    stamps = stamps_of(log, spec)
    columns = zip(
        events.customer[start:].tolist(), events.kind[start:].tolist(), events.time[start:].tolist(),
        events.values[start:].tolist(), stamps[start:].tolist(), strict=True,
    )  # fmt: skip
    for i, (customer, kind, time, values, stamp) in enumerate(columns, start):
        event: dict[str, Any] = {**who[customer], "type": spec.kinds[kind].types[0], "ts": time}
        for say, value in zip(put[kind], values, strict=False):  # others have more values
            if not isnan(value):
                say(event, value)
        if log.ids is not None and log.ids[i]:
            event["event_id"] = log.ids[i]
        yield keys[customer], orjson.dumps(event), stamp


def stamps_of(log: EventLog, spec: Spec) -> NDArray[np.int64]:
    """int64[n], ms UTC: each record's Kafka timestamp. An event of a day without a time may be dated after its arrival;
    the record's timestamp allows for that."""
    stamps: NDArray[np.int64] = np.maximum(log.arrival, log.events.time - spec.future_max_ms)
    return stamps


def _putter(value: Value) -> Callable[[dict[str, Any], float], None]:
    """Writes a value to where it is read from, in the form in which it is read. Where a text is read both as one of
    some categories and as itself, its hash says both of one that is not listed."""
    say = {"category": _category, "date": _date, "text": _text}.get(value.reads)
    *outer, last = value.path.split(".")

    def put(event: dict[str, Any], number: float) -> None:
        for key in outer:
            event = event.setdefault(key, {})
        if value.reads != "category" or number >= 1 or last not in event:
            event[last] = say(value, number) if say else number

    return put


def _category(value: Value, code: float) -> str:
    """The category; for one that the spec does not list (code 0), some text that it does not list."""
    if code >= 1:
        return value.categories[int(code) - 1]
    return "-" * (1 + max(map(len, value.categories)))


def _date(_: Value, days: float) -> float:
    """Epoch milliseconds that are so many days, to the bit: in doubles, too, x / day * day / day is x / day."""
    ms = days * DAY_MS
    return round(ms) if round(ms) / DAY_MS == days else ms


def _text(_: Value, number: float) -> str:
    return hash_text(number)
