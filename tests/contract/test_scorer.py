"""What every scorer promises, held against a real SavedModel: the same bits for a row wherever it travels, nothing
compiled in service, reasons that add up. Which one serves is `test_slot.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.model.explaining.explained import Explained
from ebbtide.model.serving.artifact import SIZES
from ebbtide.model.serving.program import BLOCK, Program
from ebbtide.model.serving.scorer import Programs, Scorer
from tests.support.seams.models import LAYOUT, Sample, publish, sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("models"), forest=True)


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer.load(folder, LAYOUT)


@pytest.fixture(scope="module")
def data() -> Sample:
    return sample(1_024, seed=1)


@pytest.fixture(scope="module")
def right(scorer: Scorer, data: Sample) -> NDArray[np.float32]:
    return scorer.score(data.rows, data.as_of)


def in_pieces(scorer: Scorer, data: Sample, n: int) -> NDArray[np.float32]:
    """Scored n rows at a time, which chooses the padded size."""
    cuts = [data.of(slice(start, start + n)) for start in range(0, len(data), n)]
    return np.concatenate([scorer.score(cut.rows, cut.as_of) for cut in cuts])


def test_the_model_has_something_to_say(right: NDArray[np.float32]) -> None:
    """Else equal bits would show nothing: probabilities all over the place, hardly any two alike."""
    assert right.dtype == np.float32
    assert ((right > 0) & (right < 1)).all()
    assert right.std() > 0.02
    assert len(np.unique(right)) > 0.9 * len(right)


@pytest.mark.parametrize("n", [*SIZES, 1, 5, 27, 100, 300])
def test_a_row_has_the_same_bits_in_every_size(
    scorer: Scorer, data: Sample, right: NDArray[np.float32], n: int
) -> None:
    """Full sizes and padded ones; 1,024 rows in pieces of n."""
    some = data if n >= 8 else data.of(slice(0, 64))
    assert in_pieces(scorer, some, n).tobytes() == right[: len(some)].tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_a_row_has_the_same_bits_in_every_position_and_company(
    scorer: Scorer, data: Sample, right: NDArray[np.float32], size: int
) -> None:
    """
    rows      a b c d e f g h        each row visits other positions, among other neighbours
    moved by  h a b c d e f g
    shuffled  d h a f c b g e
    """
    moves = [np.roll(np.arange(len(data)), shift) for shift in (1, 3, 17, size // 2)]
    moves += [np.random.default_rng(seed).permutation(len(data)) for seed in range(3)]
    for order in moves:
        assert in_pieces(scorer, data.of(order), size).tobytes() == right[order].tobytes()


def test_one_row_in_every_position(scorer: Scorer, data: Sample, right: NDArray[np.float32]) -> None:
    """The same row, repeated through a whole batch, is one number."""
    for row in (1, 7, 50):
        same = scorer.score(data.rows[[row] * 512], data.as_of[[row] * 512])
        assert set(same.tolist()) == {float(right[row])}


def test_nothing_is_traced_in_service(scorer: Scorer, data: Sample) -> None:
    before = scorer.traces()
    assert before == len(scorer.sizes) + 1  # each size, and the explanation
    for n in (0, 1, 2, 3, 7, 8, 9, 31, 33, 100, 129, 511, 512, 513, 777, 1_024):
        assert len(scorer.score(data.rows[:n], data.as_of[:n])) == n
        assert len(scorer.explain(data.rows[: n // 20], data.as_of[: n // 20]).packed) == n // 20
    assert scorer.traces() == before


def test_padded_is_the_smallest_size_that_holds_them(scorer: Scorer) -> None:
    assert [scorer.padded(n) for n in (1, 8, 9, 33, 512, 2_000)] == [8, 8, 32, 128, 512, 512]


def test_reasons_add_up_to_the_logit(scorer: Scorer, folder: Path, data: Sample) -> None:
    """Completeness: contributions and the sequence's part sum to the logit less the baseline's, of every row, long
    silences and customers of whom nothing is known among them; and TensorFlow's own answer is the same."""
    later = Sample(data.rows, data.as_of + 40 * 86_400_000)
    empty = Sample(LAYOUT.empty(1), data.as_of[:1])
    for some in (data, later, empty):
        why = scorer.explain(some.rows, some.as_of)
        print("largest gap", why.gap.max())
        assert why.holds.all() and len(set(why.reference.tolist())) == 1
        np.testing.assert_allclose(
            tf.sigmoid(why.logit).numpy(), scorer.score(some.rows, some.as_of), atol=1e-6
        )
    assert why.sequence[0] == 0.0, "nothing was done: the sequence says nothing"
    why = scorer.explain(data.rows, data.as_of)
    assert np.abs(why.logit - why.reference).max() > 0.5 and np.abs(why.sequence).max() > 0.05
    signature = tf.saved_model.load(str(folder)).signatures["explain"]
    plain = {name: value.numpy() for name, value in signature(**by_field(data.of(slice(0, 200)))).items()}
    for name, column in zip(
        ("features", "contributions", "sequence", "logit", "reference"), why[:5], strict=True
    ):
        np.testing.assert_allclose(column[:200], plain[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_what_does_not_add_up_is_not_believed() -> None:
    good = Explained.by(np.ones((3, 2), np.float32), np.array([[1, 2], [3, 4], [np.nan, 0]], np.float32))
    assert good.holds.tolist() == [True, True, False]
    off = good._replace(reference=good.reference + np.array([0, 2e-4, 0], np.float32))
    assert off.holds.tolist() == [True, False, False]


def test_anyone_may_call_the_signatures_by_field(
    scorer: Scorer, folder: Path, data: Sample, right: NDArray[np.float32]
) -> None:
    """As TF Serving or a notebook does, without XLA: the same probabilities but for the last bits."""
    loaded = tf.saved_model.load(str(folder))
    out = loaded.signatures["score"](**by_field(data))
    np.testing.assert_allclose(out["probability"].numpy(), right, atol=1e-6)
    np.testing.assert_allclose(tf.sigmoid(out["logit"]).numpy(), out["probability"].numpy(), atol=1e-6)
    features = loaded.signatures["features"](**by_field(data))["features"].numpy()
    assert features.shape == (len(data), len(scorer.manifest.features))
    assert np.isfinite(features).all()


def test_silence_moves_the_head_and_not_the_sequence(folder: Path, data: Sample) -> None:
    """With every feature at its mean only the sequence speaks, and it says the same whenever it is asked."""
    signature = tf.saved_model.load(str(folder)).signatures["explain"]
    later = Sample(data.rows, data.as_of + 9 * 86_400_000)
    now, then = (signature(**by_field(when)) for when in (data, later))
    assert now["reference"].numpy().tobytes() == then["reference"].numpy().tobytes()
    assert np.abs(now["logit"].numpy() - then["logit"].numpy()).max() > 0.01


def test_a_size_that_is_no_multiple_of_a_block_is_refused(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match=str(BLOCK)):
        Program(None, LAYOUT, BLOCK + 8, "/CPU:0")


@pytest.mark.slow
def test_weights_alone_need_no_new_program(scorer: Scorer, data: Sample, tmp_path: Path) -> None:
    """Two versions with one graph share what XLA has compiled, also while both are asked; each has its own answers."""
    programs: Programs = {}
    first, second = (
        Scorer.load(publish(tmp_path, seed=seed, sizes=(32,), forest=True), LAYOUT, programs=programs)
        for seed in (0, 7)
    )
    alone = Scorer.load(second.path, LAYOUT)
    assert len(programs) == 2
    assert second.traces() == 2  # score and explain, once each for both versions
    some = data.of(slice(0, 64))
    assert first.score(some.rows, some.as_of).tobytes() == scorer.score(some.rows, some.as_of).tobytes()
    for _ in range(2):
        assert second.score(some.rows, some.as_of).tobytes() == alone.score(some.rows, some.as_of).tobytes()
        assert first.score(some.rows, some.as_of).tobytes() != second.score(some.rows, some.as_of).tobytes()
    ours, theirs = (each.explain(some.rows, some.as_of) for each in (second, alone))
    assert ours.packed.tobytes() == theirs.packed.tobytes()


@pytest.mark.slow
def test_a_worker_may_begin_with_one_size(folder: Path, data: Sample, right: NDArray[np.float32]) -> None:
    """The first size is a block of rows; each other one gives the same bits once it is there."""
    scorer = Scorer.load(folder, LAYOUT, whole=False)
    sizes = [scorer.sizes]
    while scorer.missing:
        assert in_pieces(scorer, data.of(slice(0, 100)), 50).tobytes() == right[:100].tobytes()
        scorer = scorer.wider()
        sizes.append(scorer.sizes)
    assert sizes == [(32,), (32, 512), (32, 128, 512), SIZES], "the largest first: a backlog waits for it"
    assert in_pieces(scorer, data, 512).tobytes() == right.tobytes()


def by_field(data: Sample) -> dict[str, tf.Tensor]:
    record = {name: tf.constant(data.rows[name]) for name in LAYOUT.model_fields}
    return {**record, "as_of": tf.constant(data.as_of)}
