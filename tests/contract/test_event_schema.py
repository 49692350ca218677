"""The published JSON Schema and the parser say the same: what one takes, the other takes."""

import json
import random
from typing import Any

import jsonschema
import orjson
import pytest

from ebbtide.featurestore.events.contract import Reason, event_schema
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.spec import parse_spec
from tests.support.fuzz import NOW_MS, ODD, good
from tests.support.seams.streams import LogRecord

SPEC = parse_spec(
    {
        "name": "t", "horizon": "14d", "memory": "90d", "windows": {"30d": 6},
        "past_max": "4000000d",  # how old an event may be is Kafka's side: it depends on the arrival
        "kinds": [
            {"name": "page_view"}, {"name": "search"}, {"name": "add_to_cart"},
            {"name": "newsletter", "role": "contact"},
            {"name": "purchase", "aggregate": ["sum"]}, {"name": "account_closed", "role": "terminal"},
            {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
            {"name": "seats", "role": "attribute", "value": "properties.seats"},
        ],
    }
)  # fmt: skip
NO_DAY = "2026-02-30"
"""Looks like a date to a pattern and is none; validators that know the format date-time refuse it."""


def events(seed: int, n: int) -> list[Any]:
    """Good events, and events with one or two odd fields, as JSON has them."""
    rng, made = random.Random(seed), []
    for _ in range(n):
        event = good(rng)
        for _ in range(rng.randrange(3)):
            event[rng.choice(["user_id", "type", "ts", "value", "event_id", "properties", "more"])] = (
                rng.choice(ODD)
            )
        if rng.random() < 0.1:
            event.pop(rng.choice(list(event)))
        made.append(rng.choice(ODD) if rng.random() < 0.02 else event)
    return made


def admitted(event: Any, parser: Parser) -> bool:
    """Does the parser take it, Kafka's side (key, arrival) being right?"""
    user = event.get("user_id") if isinstance(event, dict) else None
    key = user.encode() if isinstance(user, str) else b"c1"
    record = LogRecord(0, 253_402_300_799_999, key, json.dumps(event).encode())
    parsed = parser.parse([record])
    assert not [bad for bad in parsed.rejected if bad.reason is Reason.KEY_MISMATCH and user]
    return len(parsed.events) == 1


@pytest.mark.parametrize("unknown", ["dead_letter", "ignore"])
def test_an_event_fits_the_schema_exactly_when_it_parses(unknown: str) -> None:
    spec = SPEC.model_copy(update={"unknown": unknown})
    validator = jsonschema.Draft202012Validator(event_schema(spec))
    parser, fitting = Parser(spec), 0
    for event in events(seed=1, n=5_000):
        fields = event if isinstance(event, dict) else {}
        if unknown == "ignore" and fields.get("type") not in list(spec.kind_of_type):
            continue  # of the spec's no concern
        fits = validator.is_valid(event) and fields["ts"] != NO_DAY
        assert admitted(event, parser) == fits, event
        fitting += fits
    assert fitting > 2_000


def test_the_general_schema_takes_every_specs_events() -> None:
    validator, parser = jsonschema.Draft202012Validator(event_schema()), Parser(SPEC)
    for event in events(seed=2, n=5_000):
        assert not admitted(event, parser) or validator.is_valid(event), event


def test_the_schema_is_a_schema_and_names_its_fields() -> None:
    for schema in (event_schema(), event_schema(SPEC)):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["required"] == ["user_id", "type", "ts"]
        assert set(schema["properties"]) == {"user_id", "event_id", "type", "ts", "value", "properties"}
        assert all("description" in field or "enum" in field for field in schema["properties"].values())
        orjson.dumps(schema)


def test_good_events_arrive_unharmed() -> None:
    """Beside the schema: an event that a producer wrote by it carries its time and value into the columns."""
    event = {"user_id": "c1", "type": "purchase", "ts": NOW_MS, "value": 3}
    record = LogRecord(5, NOW_MS, b"c1", orjson.dumps(event))
    parsed = Parser(SPEC).parse([record])
    assert (parsed.events.time.tolist(), parsed.events.value.tolist()) == ([NOW_MS], [3.0])
