"""The consumer within the chaos verdict: what it has to complain about, fed by hand."""

import orjson
import pytest

from ebbtide.stream.outputs.dead_letter import Position, propagated_tombstone
from tests.chaos.consumer import AlertConsumer, Belief, ForgottenWatch

JANE = b"jane"


def alert(transition: str, sequence: int, customer: str = "jane") -> bytes:
    identity = f"{customer}-{transition}-{sequence}"
    return orjson.dumps(
        {"alert_id": identity, "customer": customer, "sequence": sequence, "state": transition}
    )


OPENED, RESOLVED, AGAIN = alert("opened", 10), alert("resolved", 20), alert("opened", 30)


@pytest.mark.parametrize(
    ("said", "belief", "ignored"),
    [
        ([OPENED, RESOLVED], Belief(False, 20), []),
        # resolved before opened: the consumer ends in the right belief, and has lost a word
        ([RESOLVED, OPENED], Belief(False, 20), ["jane-opened-10"]),
        ([AGAIN, OPENED, RESOLVED], Belief(True, 30), ["jane-opened-10", "jane-resolved-20"]),
        # said twice, as after a crash: nothing is lost
        ([OPENED, RESOLVED, OPENED, RESOLVED], Belief(False, 20), []),
        ([OPENED, OPENED], Belief(True, 10), []),
        # forgotten, and back with an earlier clock
        ([OPENED, RESOLVED, None, alert("opened", 5)], Belief(True, 5), []),
        ([OPENED, None], None, []),
    ],
)
def test_ignored_alerts_are_noticed(
    said: list[bytes | None], belief: Belief | None, ignored: list[str]
) -> None:
    consumer = AlertConsumer()
    for value in said:
        consumer.read(JANE, value)
    assert consumer.beliefs.get("jane") == belief
    assert consumer.ignored == ignored


def test_customers_do_not_mix() -> None:
    consumer = AlertConsumer()
    consumer.read(b"joe", alert("opened", 50, "joe"))
    consumer.read(JANE, OPENED)
    consumer.read(b"joe", None)
    assert consumer.beliefs == {"jane": Belief(True, 10)}
    assert consumer.ignored == []


def test_alerts_behind_the_tombstone_are_noticed() -> None:
    """Both alerts of what lies at 7 and 8 come behind the null of the tombstone at 9; a new life at 12 may."""
    watch = ForgottenWatch()
    null = propagated_tombstone(JANE, Position("clicks", 2, 9), topic="alerts")
    watch.value(JANE, "clicks", 2, 7)
    assert null.value is None and null.key is not None
    watch.null(null.key, null.headers)
    for offset in (7, 8, 12):
        watch.value(JANE, "clicks", 2, offset)
    watch.value(JANE, "clicks", 3, 1)  # another partition's offsets say nothing
    watch.value(b"joe", "clicks", 2, 8)
    assert watch.behind == [(JANE, 7), (JANE, 8)]


def test_an_older_null_said_again_moves_nothing_back() -> None:
    watch = ForgottenWatch()
    for offset in (9, 4):
        watch.null(JANE, propagated_tombstone(JANE, Position("clicks", 0, offset), topic="alerts").headers)
    watch.value(JANE, "clicks", 0, 6)
    assert watch.behind == [(JANE, 6)]
