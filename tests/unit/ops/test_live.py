"""What the page is told: rates by second, alerts by number, who is at risk, and nobody who was forgotten."""

import numpy as np
import orjson
import pytest

from ebbtide.ops.page.live import ALERTS_KEPT, AT_RISK_SHOWN, Live
from ebbtide.stream.clock import ManualClock
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.telemetry import AlertSent, Judged, TurnDone


def alert(
    customer: str, transition: str = "opened", probability: float | None = 0.8, target: str = "activity"
) -> Message:
    body = {
        "customer": customer, "target": target, "state": transition, "probability": probability,
        "reasons": [{"words": "no visit for 9 days"}, {"words": "fewer purchases"}], "decision": {"cause": "event"},
    }  # fmt: skip
    return Message("alerts", customer.encode(), orjson.dumps(body))


def turn(records: int, p: list[float], latencies_s: list[float]) -> TurnDone:
    return TurnDone(
        [], records=records, events=records, rejected={}, ignored=0, late=0, duplicates=0, behind_watermark=0,
        misplaced=0, forgotten=0, tombstones=0, points={},
        held={}, seconds={}, latency_s=None,
        sent=[AlertSent("opened", "high", "event", 0.8, 1, 0, 0, s, s) for s in latencies_s],
        judged=Judged(1, np.array(p, np.float32), np.zeros(0)),
    )  # fmt: skip


def live() -> tuple[Live, ManualClock]:
    clock = ManualClock(1_700_000_000_000)
    return Live("alerts", clock, lambda: {"ready": True}), clock


def test_rates_stand_by_second_and_silence_is_a_zero() -> None:
    page, clock = live()
    page.turn(turn(100, [0.1, 0.9], [0.05]))
    clock.advance(3_000)
    page.turn(turn(7, [], []))
    said = page.now()
    assert said["records"] == [100, 0, 0, 7] and said["alerts"] == [1, 0, 0, 0]
    assert said["latency_ms"] == {"p50": 50.0, "p99": 50.0, "n": 1} and said["ready"]
    assert sum(said["scores"]) == pytest.approx(2 * 0.99**3, abs=0.1)
    clock.advance(1_000_000)
    said = page.now()
    assert said["records"] == [0.0] * 120 and said["latency_ms"]["p50"] is None


def test_an_alert_comes_once_to_who_says_what_they_have() -> None:
    page, _ = live()
    page.sent([alert("ann"), Message("other", b"bob", b"{}"), alert("cid")])
    first = page.alerts_after(0)
    assert [(n, a["customer"]) for n, a in first] == [(1, "ann"), (2, "cid")]
    assert page.alerts_after(2) == [] and [n for n, _ in page.alerts_after(1)] == [2]
    page.sent([alert(f"c{n}") for n in range(ALERTS_KEPT + 50)])
    assert len(page.alerts_after(0)) == ALERTS_KEPT


def test_who_is_at_risk_is_in_an_open_episode_worst_first() -> None:
    page, _ = live()
    page.sent([alert(f"c{n}", probability=n / 100) for n in range(50)])
    page.sent([alert("c49", "resolved"), alert("c48", "corrected", None)])
    said = page.now()
    assert said["at_risk"] == 48 and len(said["worst"]) == AT_RISK_SHOWN
    assert [each["customer"] for each in said["worst"][:2]] == ["c47", "c46"]
    assert said["worst"][0]["words"] == "no visit for 9 days; fewer purchases"


def test_an_episode_of_one_target_ends_no_other() -> None:
    page, _ = live()
    page.sent([alert("ann", probability=0.6), alert("ann", probability=0.9, target="purchase"), alert("bob")])
    said = page.now()
    assert said["at_risk"] == 2 and [each["customer"] for each in said["worst"]] == ["ann", "bob"]
    page.sent([alert("ann", "resolved", 0.1, "purchase")])
    said = page.now()
    assert said["at_risk"] == 2 and [each["probability"] for each in said["worst"]] == [0.8, 0.6]
    page.sent([alert("ann", "resolved", 0.1)])
    assert page.now()["at_risk"] == 1


def test_a_customer_who_is_forgotten_is_forgotten_by_the_page() -> None:
    page, _ = live()
    page.sent([alert("ann"), alert("bob"), Message("alerts", b"ann", None)])
    assert [a["customer"] for _, a in page.alerts_after(0)] == ["bob"]
    assert "ann" not in str(page.now())
