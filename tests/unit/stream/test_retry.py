"""Waits are bounded, and differ between those who wait."""

from ebbtide.stream.retry import FIRST_S, LONGEST_S, Backoff


def test_a_wait_is_bounded_however_long_the_outage() -> None:
    """Doubled from the first to the longest, and then the same for ever: an hour of refusals is a thousand attempts."""
    backoff = Backoff()
    waits = [backoff.next_s() for _ in range(20_000)]
    assert backoff.attempts == 20_000
    for n, wait_s in enumerate(waits):
        longest_s = min(FIRST_S * 2.0 ** min(n, 100), LONGEST_S)
        assert longest_s / 2 <= wait_s <= longest_s
    assert len(set(waits[-100:])) == 100, "all who wait would come back at once"


def test_a_success_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= FIRST_S
