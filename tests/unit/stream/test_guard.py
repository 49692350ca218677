"""Which rows are given up: held against the obvious, for random sets of bad rows and every way a model may fail."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.scoring.guard import BAD_ROWS_FEW, TRIES, Apart, Guarded, bad_rows_max, calls_max
from tests.support.seams.scoring import ArithmeticModel, FussyModel, rows_of

RIGHT = ArithmeticModel()
GOOD = 1_000_000  # nobody's `activity_count` but the known good row's


def asked(n: int, rng: np.random.Generator) -> tuple[Rows, NDArray[np.int64]]:
    """Rows 0 … n - 1, by `activity_count`, at times that give each a score of its own."""
    return rows_of(n), rng.integers(10**8, 10**12, n)


def guarded(model: FussyModel) -> Guarded:
    """A model that has scored and explained somebody before."""
    model.sizes = (8,)
    known = Guarded(model)
    raises, nans, model.raises, model.nans = model.raises, model.nans, [], []
    known.score(rows_of(1, start=GOOD), np.ones(1, np.int64))
    known.explain(rows_of(1, start=GOOD), np.ones(1, np.int64))
    model.raises, model.nans = raises, nans
    model.calls.clear()
    return known


def raising(row: int) -> FussyModel:
    return FussyModel(raises=[row])


def answering_nan(row: int) -> FussyModel:
    return FussyModel(nans=[row])


def assert_apart(found: Apart, rows: Rows, as_of: NDArray[np.int64], bad: NDArray[np.int64]) -> None:
    """NaN for the bad ones, and for everybody else the very bits of a dispatch without them."""
    expected = RIGHT.expected(rows, as_of)
    expected[bad] = np.nan
    assert found.answer.tobytes() == expected.tobytes()
    assert np.flatnonzero(found.bad).tolist() == sorted(bad.tolist())


@pytest.mark.parametrize("seed", range(40))
def test_any_few_rows_are_found(seed: int) -> None:
    """Rows that raise and rows that give NaN, mixed, in dispatches of any size."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 2, 3, 7, 32, 100, 511, 512]))
    k = int(rng.integers(0, min(n, bad_rows_max(n)) + 1))
    bad = rng.permutation(n)[:k]
    cut = int(rng.integers(0, k + 1))
    model = FussyModel(raises=bad[:cut], nans=bad[cut:])
    rows, as_of = asked(n, rng)
    found = guarded(model).score(rows, as_of)
    assert_apart(found, rows, as_of, bad)
    assert found.calls == len(model.calls) <= calls_max(n)
    assert (found.calls == 1) == (k == 0)


@pytest.mark.parametrize("n", [1, 2, 31, 512])
@pytest.mark.parametrize("kind", [raising, answering_nan])
def test_one_bad_row_costs_two_calls_a_halving(n: int, kind: Callable[[int], FussyModel]) -> None:
    """Wherever it lies. One that is answered NaN costs its tries only: nothing has to be halved to find it."""
    halvings = (n - 1).bit_length()
    for row in {0, n // 2, n - 1}:
        model = kind(row)
        rows, as_of = asked(n, np.random.default_rng(row))
        found = guarded(model).score(rows, as_of)
        assert_apart(found, rows, as_of, np.array([row]))
        # all, the good row before and after, all again; then the halves; then the other tries
        assert found.calls <= 4 + (2 * halvings if kind is raising else 0) + TRIES - 1


def test_the_bound_of_calls_is_met_and_not_passed() -> None:
    """The worst there is: as many bad rows as are borne, evenly spread, so that every half raises."""
    n = 512
    for k in (bad_rows_max(n), bad_rows_max(n) + 1):
        model = FussyModel(raises=np.linspace(0, n - 1, k).astype(int))
        rows, as_of = asked(n, np.random.default_rng(0))
        if k > bad_rows_max(n):
            with pytest.raises(ScorerUnavailable, match="129 of 512"):
                guarded(model).score(rows, as_of)
        else:
            guarded(model).score(rows, as_of)
        assert 0.98 * calls_max(n) < len(model.calls) <= calls_max(n)


def test_a_search_that_leads_nowhere_ends() -> None:
    """No row is bad: every call of more than one raises, and each row is scored by itself, at once or at the last try.

    The first is found out in time and gives nobody up; the other would take twice the calls that it is worth.
    """

    class Alone(FussyModel):
        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            self.broken = len(rows) > 1
            return super().score(rows, as_of)

    class Hesitant(FussyModel):
        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            good = rows["activity_count"][0] == GOOD
            self.broken = not good and (len(rows) > 1 or self.calls[1 - TRIES :] != [1] * (TRIES - 1))
            if not self.broken and not good:
                self.calls.append(0)  # the next row begins anew
            return super().score(rows, as_of)

    rows, as_of = asked(512, np.random.default_rng(0))
    model: FussyModel = Alone()
    assert_apart(guarded(model).score(rows, as_of), rows, as_of, np.empty(0, np.int64))
    assert len(model.calls) <= calls_max(512)
    model = Hesitant()
    with pytest.raises(ScorerUnavailable, match="other rows each time, of 512"):
        guarded(model).score(rows, as_of)
    assert sum(call > 0 for call in model.calls) == calls_max(512)


def broken(model: FussyModel) -> None:
    model.broken = True


def wrong(model: FussyModel) -> None:
    model.wrong = True


@pytest.mark.parametrize("breaks", [broken, wrong])
@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("has_scored", [True, False])
def test_a_model_that_fails_for_all_is_an_outage(
    breaks: Callable[[FussyModel], None], n: int, has_scored: bool
) -> None:
    """It fails for the known good row, too, or for what stands in for one: two calls, and nobody is given up."""
    model = FussyModel()
    known = guarded(model) if has_scored else Guarded(model)
    breaks(model)
    rows, as_of = asked(n, np.random.default_rng(0))
    with pytest.raises(ScorerUnavailable, match=r"and for a good one: .*last good version"):
        known.score(rows, as_of)
    assert model.calls == [n, 1]
    model.broken = model.wrong = False
    assert_apart(known.score(rows, as_of), rows, as_of, np.empty(0, np.int64))


def test_a_model_that_breaks_while_rows_are_sought_is_an_outage() -> None:
    """From some call on everything raises, wherever that happens: who is left by then is not given up."""

    class Breaking(FussyModel):
        breaks_after = 0

        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            self.broken = len(self.calls) >= self.breaks_after > 0
            return super().score(rows, as_of)

    rows, as_of = asked(200, np.random.default_rng(0))
    for bad in (0, 77, 199):
        calls = guarded(Breaking(raises=[bad])).score(rows, as_of).calls
        for after in range(1, calls):
            model = Breaking(raises=[bad])
            known = guarded(model)
            model.breaks_after = after
            with pytest.raises(ScorerUnavailable, match="broken on purpose"):
                known.score(rows, as_of)


def test_many_bad_rows_are_an_outage() -> None:
    """A few may all be bad; of a large dispatch a quarter; one more, and it is the model that is bad."""
    assert (bad_rows_max(1), bad_rows_max(BAD_ROWS_FEW), bad_rows_max(512)) == (
        BAD_ROWS_FEW,
        BAD_ROWS_FEW,
        128,
    )
    for n, k in ((BAD_ROWS_FEW, BAD_ROWS_FEW), (512, 128)):
        rows, as_of = asked(n, np.random.default_rng(0))
        assert_apart(guarded(FussyModel(nans=range(k))).score(rows, as_of), rows, as_of, np.arange(k))
    for n, k in ((BAD_ROWS_FEW + 1, BAD_ROWS_FEW + 1), (512, 129)):
        rows, as_of = asked(n, np.random.default_rng(0))
        for model in (FussyModel(nans=range(k)), FussyModel(raises=range(k))):
            with pytest.raises(ScorerUnavailable, match=f"fails for {k} of {n} rows"):
                guarded(model).score(rows, as_of)


def test_many_bad_rows_are_an_outage_however_few_at_a_time() -> None:
    """Live dispatches are small. A model that fails for nearly everybody gives up a few and then nobody; when it
    is whole again, all are scored; and one bad customer among many is given up for ever."""
    model = FussyModel(nans=range(10_000))
    known, lost = guarded(model), 0
    for _ in range(100):
        rows, as_of = rows_of(5, start=lost), np.ones(5, np.int64)
        try:
            lost += int(known.score(rows, as_of).bad.sum())
        except ScorerUnavailable as error:
            assert "of the last" in str(error)  # noqa: PT017 - both outcomes are right, at their time
    assert BAD_ROWS_FEW - 5 < lost <= BAD_ROWS_FEW
    model.nans = []
    assert not known.score(*asked(512, np.random.default_rng(0))).bad.any()
    model.nans = [7]
    for _ in range(1_000):
        rows, as_of = asked(10, np.random.default_rng(0))
        assert np.flatnonzero(known.score(rows, as_of).bad).tolist() == [7]


def test_at_first_a_row_of_the_dispatch_is_the_proof() -> None:
    """A bad row that comes first and alone waits: nothing tells it from a bad model. In company it is given up."""
    model = FussyModel(raises=[3])
    known, one = Guarded(model), (rows_of(1, start=3), np.ones(1, np.int64))
    with pytest.raises(ScorerUnavailable, match="the first it was given"):
        known.score(*one)
    rows, as_of = asked(8, np.random.default_rng(0))
    assert_apart(known.score(rows, as_of), rows, as_of, np.array([3]))
    assert np.isnan(known.score(*one).answer).all()


def test_a_blip_costs_nobody_anything() -> None:
    """A dispatch that fails once is asked again; a row by itself may fail TRIES - 1 times."""

    class Once(FussyModel):
        left = 1

        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            self.broken, self.left = self.left > 0 and len(rows) > 1, self.left - (len(rows) > 1)
            return super().score(rows, as_of)

    rows, as_of = asked(100, np.random.default_rng(0))
    found = Guarded(Once()).score(rows, as_of)
    assert_apart(found, rows, as_of, np.empty(0, np.int64))
    assert found.calls == 3
    tries: list[int] = []

    class Recovers(FussyModel):
        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            if len(rows) == 1 and rows["activity_count"][0] == 0:
                tries.append(1)
                if len(tries) == TRIES:
                    self.raises = []
            return super().score(rows, as_of)

    found = guarded(Recovers(raises=[0])).score(rows, as_of)
    assert_apart(found, rows, as_of, np.empty(0, np.int64))
    assert len(tries) == TRIES


def test_answers_of_the_wrong_number_are_failures() -> None:
    class Short(FussyModel):
        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            return super().score(rows, as_of)[1:]

    rows, as_of = asked(3, np.random.default_rng(0))
    with pytest.raises(ScorerUnavailable, match="2 answers for 3 rows"):
        Guarded(Short()).score(rows, as_of)


@pytest.mark.parametrize("kind", [raising, answering_nan])
def test_reasons_are_missing_for_the_row_alone(kind: Callable[[int], FussyModel]) -> None:
    """Also the first time and by itself: an alert without reasons is better than one that waits."""
    rows, as_of = asked(9, np.random.default_rng(0))
    values, contributions, *_ = RIGHT.explain(rows, as_of)
    for known in (Guarded(kind(4)), guarded(kind(4))):
        alone, *_ = known.explain(rows[4:5], as_of[4:5])
        assert np.isnan(alone).all()
        found_values, found_contributions, *_ = known.explain(rows, as_of)
        others = np.arange(9) != 4
        assert found_values[others].tobytes() == values[others].tobytes()
        assert found_contributions[others].tobytes() == contributions[others].tobytes()
        assert np.isnan(found_values[4]).all() and np.isnan(found_contributions[4]).all()


def test_a_model_that_explains_nothing_is_an_outage() -> None:
    model = FussyModel()
    known = guarded(model)
    model.broken = True
    with pytest.raises(ScorerUnavailable, match="broken on purpose"):
        known.explain(*asked(3, np.random.default_rng(0)))
    assert model.calls == [3, 1]
