"""What may have been decided again, and by whom: fed by hand, look by look."""

from tests.chaos.losses import HOLD_S, UNSEEN, FellBack, Losses


def test_a_checkpoint_that_falls_back_opens_a_piece() -> None:
    """Versions are noted until it is where it had been, and not after."""
    losses = Losses()
    losses.look([9_000, 50], [4_000, 60], [9_500, 70], {1, 2}, 0.0)
    assert losses.fallen == [FellBack(0, 4_000 - UNSEEN, 9_500, {1, 2})]
    losses.look([4_000, 60], [9_400, 70], [9_500, 70], {2, 3}, HOLD_S + 1)
    losses.look([9_400, 70], [9_500, 70], [9_500, 70], {3}, HOLD_S + 2)
    losses.look([9_500, 70], [9_600, 70], [9_700, 70], {4}, HOLD_S + 3)
    assert losses.fallen == [FellBack(0, 4_000 - UNSEEN, 9_500, {1, 2, 3})]


def test_a_loss_between_two_looks_is_known_by_who_caused_it() -> None:
    """No look shows it: the state is further on than before when it is seen again."""
    losses = Losses()
    pieces = losses.pieces([90, 8_000], [5_000, 8_000], everything=True)
    losses.lost(pieces, 10.0)
    losses.look([90, 8_000], [3_000, 8_000], [5_000, 8_000], {2}, 9.9)  # asked before, answered late
    losses.look([3_000, 8_000], [5_000, 8_000], [5_000, 8_000], {3}, 10.0 + HOLD_S)
    assert losses.fallen == [FellBack(0, 0, 90 + UNSEEN, {2, 3}), FellBack(1, 0, 8_000, {2, 3})]


def test_the_end_of_a_state_is_a_short_piece() -> None:
    (piece,) = Losses.pieces([50_000], [90_000], everything=False)
    assert (piece.low, piece.high) == (50_000 - UNSEEN, 50_000 + UNSEEN)
