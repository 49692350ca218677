"""The checkpoint: one line for one value, with room for what later releases write."""

import numpy as np
import pytest

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.store.checkpoint import (
    BACKFILLING,
    RESETTING,
    Checkpoint,
    History,
    Hour,
    Stretch,
    TimerCursor,
    check_checkpoint,
    draw_nonce,
)

LEAST = Checkpoint(3, 2, 0, "layout", 4)
LEAST_TEXT = "offset=3 sequence=2 timer_ms=0 layout=layout partitions=4"
FULL = Checkpoint(
    1_200, 37, 1_700_000_000_000, "fold:0f/policy:1e", 4, (1_700_000_000_001, "jane doe/=%\n客"), "Zx9-_w", 3,
    "00112233aabbccdd", History(1_699_000_000_000, 1_100), ((28, 3), (29, 1)), Stretch(900, 1_000), "9f",
    Hour(481_234, 57), (("later", "1=2"), ("empty", "")),
)  # fmt: skip


def test_defaults_are_left_out() -> None:
    assert LEAST.text() == LEAST_TEXT
    assert Checkpoint.parse(LEAST_TEXT) == LEAST


def test_every_field_is_read_back() -> None:
    assert FULL.text() == (
        "offset=1200 sequence=37 timer_ms=1700000000000 layout=fold:0f/policy:1e partitions=4"
        " timer_cursor=1700000000001:jane%20doe%2F%3D%25%0A%E5%AE%A2 topic_id=Zx9-_w leader_epoch=3"
        " nonce=00112233aabbccdd history=1699000000000:1100 budget=28:3,29:1 silent=900:1000 names=9f"
        " hour=481234:57 later=1=2 empty="
    )
    assert Checkpoint.parse(FULL.text()) == FULL


def test_a_log_line_of_it_names_nobody() -> None:
    assert "jane" not in f"{FULL}"
    assert "offset=1200 sequence=37" in f"{FULL}"


@pytest.mark.parametrize("seed", range(3))
def test_equal_text_is_an_equal_checkpoint(seed: int) -> None:
    """Random fields, one of them changed: another text, and each text gives its checkpoint again."""
    rng = np.random.default_rng(seed)
    values: dict[str, list[object]] = {
        "offset": [0, 7, 2**62], "sequence": [0, 9], "timer_ms": [0, 5], "layout": ["a", "b"], "partitions": [1, 64],
        "timer_cursor": [None, (0, ""), (0, "a"), (5, "é b")], "topic_id": ["", "t"], "leader_epoch": [-1, 0, 4],
        "nonce": ["", draw_nonce()], "history": [None, History(0, 0), History(5, 7)],
        "budget": [(), ((0, 1),), ((5, 2), (7, 3))],
        "silent": [None, Stretch(0, 0), Stretch(3, 9)], "names": ["", "9f"],
        "hour": [None, Hour(0, 0), Hour(7, 9)],
        "extra": [(), (("x", ""),), (("x", "1"), ("y", "2"))],
    }  # fmt: skip
    seen: dict[str, Checkpoint] = {}
    for _ in range(2_000):
        fields = {name: each[int(rng.integers(len(each)))] for name, each in values.items()}
        checkpoint = Checkpoint(**fields)  # type: ignore[arg-type]  # each of its own field's values
        assert checkpoint.is_readable
        assert Checkpoint.parse(checkpoint.text()) == checkpoint
        assert seen.setdefault(checkpoint.text(), checkpoint) == checkpoint
    assert len(seen) > 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "offset",
        "offset=3",
        LEAST_TEXT + " ",
        " " + LEAST_TEXT,
        LEAST_TEXT + "\n",
        LEAST_TEXT + " offset=3",
        LEAST_TEXT + " leader_epoch=-1",  # a default: there is one way to write it
        LEAST_TEXT + " nonce=1 topic_id=2",
        LEAST_TEXT + " later=1 later=2",
        LEAST_TEXT + " Later=1",
        LEAST_TEXT + " timer_cursor=jane",
        LEAST_TEXT + " timer_cursor=5:%ff",
        LEAST_TEXT + " hour=5",
        LEAST_TEXT + " hour=-5:1",
        LEAST_TEXT.replace("3", "+3"),
        LEAST_TEXT.replace("3", "three"),
        LEAST_TEXT.replace("3", "-3"),
        LEAST_TEXT.replace("=layout", "="),
        "mark=3 step=2 timer_ms=0 layout=layout partitions=4",
        RESETTING,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(LayoutError, match="ebbtide rebuild"):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": -1},
        {"leader_epoch": -2},
        {"layout": ""},
        {"layout": "two words"},
        {"topic_id": "é"},
        {"nonce": "a b"},
        {"timer_cursor": (-1, "a")},
        {"timer_cursor": (1, "\ud83e")},
        {"extra": (("offset", "3"),)},
        {"extra": (("a", "1"), ("a", "2"))},
        {"extra": (("a", "1 2"),)},
        {"extra": (("", "1"),)},
    ],
)
def test_what_nobody_could_read_again_is_known_before(wrong: dict[str, TimerCursor]) -> None:
    assert not LEAST._replace(**wrong).is_readable  # type: ignore[arg-type]  # wrong on purpose


def test_state_of_another_fold_is_refused() -> None:
    stored = LEAST._replace(layout="fold:01/policy:02")
    check_checkpoint(stored, "fold:01/policy:02", 4)
    check_checkpoint(stored, "fold:01/policy:03", 4)
    for layout in ("fold:04/policy:02", BACKFILLING):
        with pytest.raises(LayoutError, match=r"record layout|backfill"):
            check_checkpoint(stored._replace(layout=layout), "fold:01/policy:02", 4)
    with pytest.raises(LayoutError, match="4 partitions, this one has 5"):
        check_checkpoint(stored, "fold:01/policy:02", 5)


def test_nonces_differ() -> None:
    nonces = {draw_nonce() for _ in range(100)}
    assert len(nonces) == 100
    assert all(len(nonce) == 16 and int(nonce, 16) >= 0 for nonce in nonces)
