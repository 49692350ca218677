"""Where training ends and judging begins: slices of time, each with its last horizon over before the next begins.

    enough history (labelled points span at least 4 horizons)

        ├──────── train ────────┤·· H ··├ calibration ┤·· H ··├── test ──┤·· H ··┤ known until
                                                                                    70 : 15 : 15 of what is not gap
    short history (at least 1.75 horizons)

        ├──────── train ────────┤·· H ··├── test ──┤·· H ··┤        calibration: customers held out of the train
                                                                      slice, 15 %, by a hash of their id; composite
                                                                      ones by that of the first part

A row in a gap belongs to no slice; it is learned from where its horizon is over before what is asked of it.

What a model is made of is found before the test slice by *folds*, forward in time, each with a horizon between what is
fitted and what is validated; the later one validates on the calibration slice. In the short form there is one fold, of
customers.

        ├─ fit ──┤·· H ··├ validate ┤
        ├──────── fit ─────────┤·· H ··├ calibration ┤
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.customer import first_parts
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.examples import Examples

HELD_OUT_PERCENT = 15
TRAIN_SHARE, CALIBRATION_SHARE = 0.70, 0.15
SHORT_TRAIN_SHARE = 0.75
HORIZONS_FOR_THREE = 4.0
"""With fewer, the two gaps would eat more than half of what is labelled."""
FIT_SHARE_MIN = 0.4
"""Of the train slice, what the earlier fold must have to fit on at least."""
HORIZONS_AT_LEAST = 1.75
"""One for the gap; of the rest a quarter is the test, most of a fifth of a horizon."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Bounds in ms UTC, half-open; `calibration` is None in the short form."""

    train: tuple[int, int]
    calibration: tuple[int, int] | None
    test: tuple[int, int]

    def of(self, examples: Examples, held_out: NDArray[np.bool_]) -> NDArray[np.str_]:
        """str[n]: 'train', 'calibration', 'test' or 'gap'. held_out: bool[m] over the log's customers."""
        slice_of = np.full(len(examples), "gap", "<U11")
        slice_of[_within(examples, self.train)] = "train"
        slice_of[_within(examples, self.test)] = "test"
        if self.calibration is not None:
            slice_of[_within(examples, self.calibration)] = "calibration"
        else:
            slice_of[(slice_of == "train") & held_out[examples.customer]] = "calibration"
        return slice_of

    def folds(self, horizon_ms: int) -> list[tuple[int, tuple[int, int]]]:
        """Of each fold, in ms UTC: until when (not included) labels must be known of what is fitted, and the span that
        is validated. Empty in the short form."""
        if self.calibration is None:
            return []
        begin, end = self.calibration
        length, train_end = end - begin, self.train[1]
        earlier = (train_end - length, train_end)
        spans = [earlier, self.calibration]
        # The earlier one must have learned from a history that resembles the later's.
        enough = earlier[0] - horizon_ms - self.train[0] >= FIT_SHARE_MIN * (train_end - self.train[0])
        return [(span[0], span) for span in (spans if enough else spans[1:])]


def plan_slices(spec: Spec, first_ms: int, known_until_ms: int) -> Slices:
    """The slices of a history from `first_ms` to `known_until_ms`. Raises SpecError when it is too short."""
    horizon = spec.horizon_ms
    end = known_until_ms - horizon
    span = end - first_ms
    if span < HORIZONS_AT_LEAST * horizon:
        needed = (HORIZONS_AT_LEAST + 1) * horizon
        raise SpecError(
            f"the history spans {max(known_until_ms - first_ms, 0) / DAY_MS:.1f} days; a horizon of "
            f"{horizon / DAY_MS:.1f} days needs at least {needed / DAY_MS:.1f} to train and test on",
            hint="use a longer log, a later --labels-until or a shorter --horizon",
        )
    if span >= HORIZONS_FOR_THREE * horizon:
        free = span - 2 * horizon
        train_end = first_ms + round(TRAIN_SHARE * free)
        calibration = (train_end + horizon, train_end + horizon + round(CALIBRATION_SHARE * free))
        return Slices((first_ms, train_end), calibration, (calibration[1] + horizon, end))
    train_end = first_ms + round(SHORT_TRAIN_SHARE * (span - horizon))
    return Slices((first_ms, train_end), None, (train_end + horizon, end))


def held_out(spec: Spec, customers: Sequence[str], seed: int = 0) -> NDArray[np.bool_]:
    """bool[m]: HELD_OUT_PERCENT of the customers, by a hash of their id, the same in every log they appear in. All of
    one first part are on one side."""
    whose = first_parts(customers, spec.customer)
    hashes = np.fromiter((crc32(f"{seed}:{each}".encode()) for each in whose), np.int64, len(whose))
    return hashes % 100 < HELD_OUT_PERCENT


def _within(examples: Examples, bounds: tuple[int, int]) -> NDArray[np.bool_]:
    return (examples.as_of >= bounds[0]) & (examples.as_of < bounds[1])
