"""The alert's bytes, its schema, and how reasons are chosen and said."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from ebbtide.featurestore.record.reasons import Said
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.stream.outputs.alert import (
    Alert,
    Decision,
    alert_id,
    alert_schema,
    customer_key,
    encode,
    reasons_of,
)
from ebbtide.stream.outputs.versions import read_alert


def an_alert(**changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "alert_id": alert_id("clickstream", "ann", "activity", "opened", 7),
        "schema_version": 2,
        "customer": "ann",
        "target": "activity",
        "sequence": 7,
        "state": "opened",
        "cause": "score",
        "band": "high",
        "logit": 1.466337068793427,
        "probability": 0.8125,
        "threshold": 0.8,
        "horizon_days": 14.0,
        "reasons": reasons_of([Said("silence", "silence", 9.123456, 0.123456, "9 days")]),
        "model": "shop",
        "model_version": 3,
        "layout": "0123456789abcdef",
        "decision": Decision(
            as_of=instant(1_700_000_000_123), cause="silence", topic="clickstream", partition=1, offset=99
        ),
    }
    return Alert(**{**fields, **changes})


def test_bytes_follow_from_the_decision_and_read_back() -> None:
    assert encode(an_alert()) == encode(an_alert())
    assert Alert.model_validate_json(encode(an_alert())) == an_alert()
    assert customer_key(encode(an_alert(customer="käthe"))) == "käthe".encode()
    assert json.loads(encode(an_alert()))["decision"]["as_of"] == "2023-11-14T22:13:20.123000Z"


def test_the_id_tells_everything_apart_that_is_not_the_same() -> None:
    ids = {
        alert_id(topic, customer, target, state, sequence)
        for topic in ("a", "b")
        for customer in ("ann", "ann1")
        for target in ("buy", "visit")
        for state in ("opened", "resolved")
        for sequence in (1, 11)
    }
    assert len(ids) == 32
    assert all(len(each) == 32 for each in ids)


def test_the_schema_takes_what_we_send() -> None:
    schema = alert_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for alert in (
        an_alert(),
        an_alert(state="resolved", cause="terminal", probability=None, logit=None, reasons=()),
    ):
        validator.validate(json.loads(encode(alert)))
    good = json.loads(encode(an_alert()))
    for bad in (
        {**good, "probability": 1.5},
        {**good, "schema_version": 3},
        {name: value for name, value in good.items() if name != "schema_version"},
        {**good, "state": "terminated"},
        {**good, "row_sha256": "x"},
        {**good, "customer": ""},
        {**good, "alert_id": "x"},
        {name: value for name, value in good.items() if name != "sequence"},
    ):
        assert not validator.is_valid(bad)
        with pytest.raises(ValidationError):
            Alert.model_validate(bad)


def test_a_field_of_a_later_release_fails_nobody() -> None:
    """The schema is open, at every level: who validates, and who reads with our model, takes what was added."""
    good = json.loads(encode(an_alert()))
    later = {**good, "more": 1, "decision": {**good["decision"], "more": [1]}}
    Draft202012Validator(alert_schema()).validate(later)
    assert Alert.model_validate(later) == an_alert()


def test_fields_that_were_added_may_be_missing() -> None:
    """What the first release of a version did not have is null, and is not required."""
    good = json.loads(encode(an_alert()))
    added = ("survival", "activity_in_days", "lost_at", "row_sha256")
    assert all(good[name] is None for name in added)
    early = {name: value for name, value in good.items() if name not in added}
    Draft202012Validator(alert_schema()).validate(early)
    assert Alert.model_validate(early) == an_alert()


def test_alerts_of_the_first_version_are_read() -> None:
    """As a topic may hold them: every one of its transitions, with what is known of it today."""
    old = {
        "schema_version": 1, "alert_id": "0" * 32, "customer": "ann", "sequence": 7, "transition": "opened",
        "probability": 0.8125, "threshold": 0.8, "horizon_days": 14.0, "reasons": [], "model": "shop",
        "model_version": 3, "layout": "fold:1/policy:2",
        "decision": {"as_of": "2023-11-14T22:13:20Z", "cause": "silence", "topic": "clicks", "partition": 1,
                     "offset": 99},
    }  # fmt: skip

    def read(transition: str, cause: str, p: float | None) -> Alert:
        decision = {**old["decision"], "cause": cause}  # type: ignore[dict-item]  # one entry is a dictionary
        said = {**old, "transition": transition, "probability": p, "decision": decision}
        return read_alert(json.dumps(said).encode(), "purchase")

    opened = read("opened", "silence", 0.8125)
    assert (opened.state, opened.cause, opened.target, opened.band) == ("opened", "score", "purchase", "high")
    assert opened.logit == an_alert().logit
    ends = [("resolved", "event", 0.1), ("resolved", "expired", None), ("terminated", "terminal", None)]
    assert [(a.state, a.cause, a.logit is None) for a in (read(*end) for end in ends)] == [
        ("resolved", "score", False), ("resolved", "expired", True), ("resolved", "terminal", True),
    ]  # fmt: skip
    assert read_alert(encode(an_alert())) == an_alert()
    for none in (b"null", b"[]", b"7", b"{", b'{"schema_version": 3}'):
        with pytest.raises(ValueError, match=r".+"):
            read_alert(none)


def test_figures_of_reasons_are_rounded() -> None:
    (reason,) = an_alert().reasons
    assert (reason.value, reason.contribution, reason.group) == (9.123, 0.1235, "silence")
    (sequence,) = reasons_of([Said("sequence", "sequence", None, -2.0, "lately")])
    assert sequence.value is None
