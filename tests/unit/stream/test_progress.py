"""How far a partition is behind, as a series of moments: open, closed, and open again."""

from ebbtide.stream.batch import LogPosition
from ebbtide.stream.turn.progress import Progress


def test_lag_grows_while_nothing_is_committed() -> None:
    progress = Progress(now_s=0.0)
    assert progress.lag(1.0, 1_000) is None
    progress.opened(10, now_s=1.0)
    progress.look(LogPosition(10, 10, 10), 2.0, is_open=True)
    assert progress.lag(2.0, 2_000) == (0, 0, 0.0, 0.0)
    progress.look(LogPosition(10, 14, 12), 3.0, is_open=True)
    assert progress.lag(4.0, 4_000) == (4, 2, 2.0, 2.0), "not fetched yet: since it was seen"
    progress.fetched(oldest_ms=1_500, now_s=4.0)
    assert progress.lag(9.0, 9_000) == (4, 2, 5.0, 7.5), "by its own timestamp"
    progress.committed(12, None, 10.0)
    assert progress.lag(11.0, 11_000) == (2, 2, 1.0, 1.0)


def test_opening_again_at_the_same_place_is_no_progress() -> None:
    """A server that is away closes a partition again and again: its lag and its stall go on."""
    progress = Progress(now_s=0.0)
    progress.opened(10, now_s=0.0)
    progress.fetched(oldest_ms=0, now_s=0.0)
    for second in range(1, 61):
        progress.look(LogPosition(-1, 15, 15), float(second), is_open=False)
        progress.opened(10, now_s=float(second))
        progress.fetched(oldest_ms=0, now_s=float(second))
        assert progress.lag(float(second), 1_000 * second) == (5, 0, second, second)
    assert "nothing of it was committed for 60 s" in progress.stalled(60.0)
    progress.committed(15, None, 61.0)
    progress.look(LogPosition(15, 15, 15), 62.0, is_open=True)
    assert progress.lag(62.0, 62_000) == (0, 0, 0.0, 0.0) and not progress.stalled(62.0)
