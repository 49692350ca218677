"""What the chaos run sees while it lasts, and in the score topic: fed by hand."""

import numpy as np

from ebbtide.stream.outputs.dead_letter import Position, propagated_tombstone
from ebbtide.stream.outputs.scores import score_message
from tests.chaos.readiness import Silence
from tests.chaos.scores import PointKey, ScoresRead

TOPIC, JANE = "clicks", b"jane"


def test_silence_counts_only_what_stands_while_ready() -> None:
    """
    at         0    1    2    3    4    5    6    7    8    9
    checkpoint 5    5    5    5    6    6    6    6    9    9
    /readyz   200  200  503  200  200  200  200  200  200  200      log end 9
    """
    silence = Silence()
    looks = [(5, True), (5, True), (5, False), (5, True), (6, True), (6, True), (6, True), (6, True)]
    for second, (checkpoint, ready) in enumerate(looks):
        silence.look(0, checkpoint, 9, ready, float(second))
    assert silence.longest_s == 3.0
    for second in (8, 100):
        assert not silence.look(0, 9, 9, True, float(second))  # nothing is left to do
    silence.look(1, 0, 9, True, 100.0)
    assert silence.look(1, 0, 9, True, 130.0)  # another partition, never moved
    assert silence.longest_s == 30.0


def said(read: ScoresRead, offset: int, as_of: int, p: float, version: int = 1) -> None:
    message = score_message("scores", "jane", as_of, "event", np.float32(p), version, 2, offset)
    assert message.key is not None
    read.read(TOPIC, message.key, message.value, [], 0)


def test_a_stale_score_is_the_last_that_is_believed() -> None:
    read = ScoresRead()
    said(read, 7, 70, 0.25)
    said(read, 8, 80, 0.5)
    said(read, 7, 70, 0.25)  # delivered late
    assert read.latest["jane"][0] == PointKey(2, 7, 70, "event")
    assert read.duplicated == 1
    assert set(read.said) == {PointKey(2, 7, 70, "event"), PointKey(2, 8, 80, "event")}


def test_two_versions_of_one_point_are_both_known() -> None:
    read = ScoresRead()
    said(read, 7, 70, 0.25, version=3)
    said(read, 7, 70, 0.75, version=4)
    assert [score.version for score in read.said[PointKey(2, 7, 70, "event")]] == [3, 4]
    assert read.duplicated == 0


def test_a_score_behind_the_null_is_noticed() -> None:
    read = ScoresRead()
    said(read, 7, 70, 0.25)
    null = propagated_tombstone(JANE, Position(TOPIC, 2, 9), topic="scores")
    read.read(TOPIC, JANE, None, list(null.headers), 1)
    assert "jane" not in read.latest and read.forgotten == {JANE: 1}
    said(read, 7, 70, 0.25)
    assert read.watch.behind == [(JANE, 7)]


def test_what_is_no_score_is_odd() -> None:
    read = ScoresRead()
    read.read(TOPIC, JANE, b"{}", [], 5)
    read.read(TOPIC, JANE, b"\xff", [], 6)
    assert [offset for offset, _ in read.odd] == [5, 6]
