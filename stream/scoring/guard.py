"""Which rows make the model fail: they are found and given up, so that nobody else has to wait for them.

    a dispatch fails ─▶ a row known to be good ─ fails, too ─▶ outage: ScorerUnavailable, the partitions wait
                                │ scores                            ▲
                                ▼                                   │ more rows than `bad_rows_max`
          [· · · · · · × ·]   halves, halves of the half that raises, … one row, TRIES times ─▶ given up: NaN
                └ the others keep their bits: a row's score does not depend on its company

A call fails for a row when it raises, or answers it with something that is no answer (a p outside [0, 1], a reason
that is not finite). Only a call that raises has to be cut in half: one that answers has said itself which rows are bad.

It knows rows and a function of them, and refuses to know whose they are; it starts no thread. The invariant:
a row is given up only when the model is known to work, for this dispatch and for most of the last ones, and the number
of calls is bounded (`calls_max`) however the model behaves.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.scoring.model import Model
from ebbtide.stream.sliding_share import SlidingShare

log = logging.getLogger(__name__)

TRIES = 3
"""A row is given up when it has failed so often in a row: by itself, or among rows that were answered."""
BAD_ROWS_FEW = 32
"""So many may always be bad: one broken record brings a row for its event and for each silence before it, 14 in the
specs that we ship, and these may be all that was dispatched."""
BAD_SHARE_MAX = 0.25
"""Of a larger dispatch this share. One customer may be that much of a small shop; a broken model is more."""
ROWS_JUDGED = 1_000
"""The same bound holds for the last so many rows together: live dispatches are small, and a model that fails for most
customers would give them up a few at a time. A backlog and live traffic are judged alike."""

ROLL_BACK = "if it stays so, go back to the last good version: `ebbtide model pin DIR/VERSION`"


Call = Callable[[Rows, NDArray[np.int64]], NDArray[np.float32]]
"""rows[n], as_of int64[n] to float32[n, …], an answer a row."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row and its time: rows[1], as_of int64[1]."""

    rows: Rows
    as_of: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Apart:
    """`answer` float32[n, …], NaN throughout for the rows that were given up (`bad` bool[n]); `calls` of the model."""

    answer: NDArray[np.float32]
    bad: NDArray[np.bool_]
    calls: int


class Guarded:
    """A model, and the last rows that it answered well. `score` is for one thread, and `explain` for one."""

    def __init__(self, model: Model) -> None:
        self.model = model
        # A copy of somebody's record, without a name; the next call takes its place.
        self._scored: Sample | None = None
        self._explained: Sample | None = None
        self._form: Explained | None = None  # the last one: what its rows' columns are
        self._recent = SlidingShare(ROWS_JUDGED)  # of dispatches that were answered

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> Apart:
        """p float32[n], or [n, targets] of several. Raises ScorerUnavailable.

        Before the model has scored anybody, one row of the dispatch has to show that it can: a model may fail for every
        customer there is and not for the stand-in.
        """
        found = apart(self.model.score, _is_probability, rows, as_of, self._scored)
        self._judge(len(rows), int(np.count_nonzero(found.bad)))
        self._scored = _last_good(rows, as_of, found.bad) or self._scored
        return found

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        """Why; NaN throughout for rows that were given up. Raises ScorerUnavailable.

        Alerts are rare, so here the stand-in is proof enough: what is lost is a reason, not a decision.
        """
        found = apart(self._why, _is_finite, rows, as_of, self._explained or stand_in(rows))
        self._explained = _last_good(rows, as_of, found.bad) or self._explained
        assert self._form is not None  # apart has an answer, so the model gave one
        return self._form.unpacked(found.answer)

    def _judge(self, n: int, bad: int) -> None:
        """Count a dispatch among the last ones; one that is an outage is not answered, so it does not count."""
        of, all_bad = self._recent.of + n, self._recent.bad + bad
        if bad and all_bad > bad_rows_max(of):
            raise ScorerUnavailable(f"the model fails for {all_bad} of the last {of} rows", hint=ROLL_BACK)
        self._recent.add(n, bad)

    def _why(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        self._form = self.model.explain(rows, as_of)
        return self._form.packed


def stand_in(rows: Rows) -> Sample:
    """What is tried before any row is known to be good: zero bytes, a customer of whom nothing is known. It is what
    dispatches are padded with, so every model has to be able to score it."""
    return Sample(np.zeros(1, rows.dtype), np.zeros(1, np.int64))


def bad_rows_max(n: int) -> int:
    """How many of n rows dispatched may be bad before it is the model that is."""
    return max(BAD_ROWS_FEW, int(BAD_SHARE_MAX * n))


def calls_max(n: int) -> int:
    """The most calls that n >= 1 rows are worth.

    One that fails, the good row before and after, one more for all. Then b bad rows (one over the bound, when it
    stops): of the levels of halves, log2 n, level l has min(2^l, b) that raise, and each is two calls more; and the
    other tries.

        n = 512: 24 calls for 1 bad row, 1,030 at most; at 3 ms a call of few rows that is 0.1 s and 3 s
    """
    b, levels = min(n, bad_rows_max(n) + 1), (n - 1).bit_length()
    raising = sum(min(1 << level, b) for level in range(levels))
    return 4 + 2 * raising + (TRIES - 1) * b


def apart(
    call: Call,
    is_answer: Callable[[NDArray[np.float32]], NDArray[np.bool_]],
    rows: Rows,
    as_of: NDArray[np.int64],
    known_good: Sample | None,
) -> Apart:
    """`call(rows, as_of)` for n >= 1 rows, without those for which it fails; one call when it fails for none.

    `is_answer`: answers float32[m, …] to bool[m]. `known_good`: was answered before; None when nothing was: then the
    stand-in has to be answered, and one of the rows.
    Raises ScorerUnavailable when the known good row fails, too, when more than `bad_rows_max(n)` rows do, and when
    `calls_max(n)` calls did not tell which.
    """
    n, calls, why = len(rows), 0, ""
    proof_row = known_good or stand_in(rows)

    def ask(some: Rows, then: NDArray[np.int64]) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """The answers, None when there are none; and which of them are."""
        nonlocal calls, why
        if calls == calls_max(n):
            raise ScorerUnavailable(
                f"the model fails for other rows each time, of {n}: {why}", hint=ROLL_BACK
            )
        calls += 1
        try:
            answer = call(some, then)
            fine = is_answer(answer)
            if len(fine) != len(some):
                raise ValueError(f"{len(fine)} answers for {len(some)} rows")
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it is asked for fewer rows
            why = repr(error)
            return None, np.zeros(len(some), np.bool_)
        if not fine.all():
            why = f"{np.count_nonzero(~fine)} of {len(fine)} answers are not finite, or no probability"
        return answer, fine

    answer, fine = ask(rows, as_of)
    if answer is not None and fine.all():
        return Apart(answer, ~fine, calls)
    failed = why

    def prove() -> NDArray[np.float32]:
        proof, fine = ask(proof_row.rows, proof_row.as_of)
        if proof is None or not fine.all():
            raise ScorerUnavailable(
                f"the model fails for {n} rows and for a good one: {failed}", hint=ROLL_BACK
            )
        return proof

    proof = prove()

    answers = np.full((n, *proof.shape[1:]), np.nan, np.float32)
    bad = np.zeros(n, np.bool_)
    left = [(np.arange(n), TRIES)]  # all of them once more: a blip is over by now
    while left:
        chosen, tries = left.pop()
        answer, fine = ask(rows[chosen], as_of[chosen])
        if answer is None and len(chosen) > 1:
            half = len(chosen) // 2
            left += [(chosen[half:], tries), (chosen[:half], tries)]
            continue
        if answer is not None:
            answers[chosen[fine]] = answer[fine]
        failing = chosen[~fine]
        if len(failing) and tries > 1:
            left.append((failing, tries - 1))
        else:
            bad[failing] = True
            if (many := np.count_nonzero(bad)) > bad_rows_max(n):
                raise ScorerUnavailable(
                    f"the model fails for {many} of {n} rows or more: {why}", hint=ROLL_BACK
                )
    if bad.any():
        prove()  # it did not break while we searched
    if known_good is None and bad.all():
        raise ScorerUnavailable(
            f"the model fails for {n} rows, the first it was given: {why}", hint=ROLL_BACK
        )
    log.warning(
        "the model fails for some rows",
        extra={"rows": n, "given_up": int(np.count_nonzero(bad)), "calls": calls, "error": why},
    )
    return Apart(answers, bad, calls)


def _last_good(rows: Rows, as_of: NDArray[np.int64], bad: NDArray[np.bool_]) -> Sample | None:
    good = np.flatnonzero(~bad)
    if not len(good):
        return None
    i = int(good[-1])
    return Sample(rows[i : i + 1].copy(), as_of[i : i + 1].copy())


def _is_probability(p: NDArray[np.float32]) -> NDArray[np.bool_]:
    fine = (p >= 0.0) & (p <= 1.0)
    return np.asarray(fine if fine.ndim == 1 else fine.all(axis=1))


def _is_finite(answer: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(answer).all(axis=tuple(range(1, answer.ndim))))
