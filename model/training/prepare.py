"""From a log to what a training works on: its end, its slices, its examples, and the panels for the thresholds.

    log ─▶ end of what is known ─▶ slices in time, customers held out ─▶ one walk through the log ─▶ Prepared

It knows times and rows; it trains nothing. All that a training ever asks of its log is gathered in one walk, and seen
through one feature layer and one labeller.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import HERE
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.dataset import History, wanted_of
from ebbtide.model.examples.examples import Examples, thinned, weighed
from ebbtide.model.examples.jobs import gather_by
from ebbtide.model.examples.known import Known
from ebbtide.model.examples.labels import CANCELLED
from ebbtide.model.examples.sample import Panel
from ebbtide.model.examples.shards import Shards
from ebbtide.model.examples.slices import Slices, held_out, plan_slices
from ebbtide.model.examples.streamed import stream_out
from ebbtide.model.training.panels import POINTS_MIN, panel_of

ROWS_MIN = 50
"""A slice with fewer labelled rows decides nothing."""
FEWEST = 2
"""Examples that the first walk keeps where the second one puts all on disk: a decision point and a snapshot."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """Every decision of a panel of customers in a span: `start_ms` is where its horizons are counted from."""

    start_ms: int
    rows: Examples


class FoldRows(NamedTuple):
    """What a fold fits, of which labels are known until `until_ms`, and what it validates. What it fits is as of before
    `before_ms`, and not of the customers held out where `apart`."""

    until_ms: int
    fit: Examples
    later: Examples
    before_ms: int
    apart: bool = False


@dataclass(frozen=True)
class Prepared:
    """What a training works on.

    drawn:    the examples, those whose customer left in so many words among them     slice_of: str[n], see `Slices.of`
    held:     bool[m] over the log's customers: who calibrate in the short form of slices
    before_test, in_test, recent: the decisions in the horizon before the test slice, in whole horizons from its start
                                  on, and in the log's last horizon
    streamed: all labelled examples, on disk, where networks learn from more than `drawn`
    """

    layout: Layout
    known: Known
    slices: Slices
    held: NDArray[np.bool_]
    drawn: Examples
    slice_of: NDArray[np.str_]
    before_test: Decisions
    in_test: Decisions
    recent: Decisions
    streamed: Shards | None = None

    @cached_property
    def by_target(self) -> list["Prepared"]:
        """The same as each target of the spec sees it, the primary one first: with its labels."""
        targets = range(len(self.layout.spec.target_names))
        return [self if target == self.target else self._of(target) for target in targets]

    @property
    def target(self) -> int:
        """Index of the target whose labels these are."""
        return self.drawn.target

    @property
    def target_spec(self) -> Spec:
        """The spec as if that target were its only one: for labels and words."""
        return self.layout.spec.only_target(self.target)

    def _of(self, target: int) -> "Prepared":
        def seen(decisions: Decisions) -> Decisions:
            return Decisions(decisions.start_ms, decisions.rows.of_target(target))

        return replace(
            self,
            drawn=self.drawn.of_target(target),
            before_test=seen(self.before_test),
            in_test=seen(self.in_test),
            recent=seen(self.recent),
        )

    @cached_property
    def usable(self) -> Examples:
        """The examples without those whose customer left in so many words."""
        return self.drawn.usable()

    @cached_property
    def train(self) -> Examples:
        return self._slice("train")

    @cached_property
    def early(self) -> Examples:
        """The usable examples whose horizon is over before the test slice: what may be learned from before it."""
        horizon = self.layout.spec.horizon_ms
        return self.usable.take(self.usable.as_of + horizon <= self.slices.test[0])

    @cached_property
    def folds(self) -> list[FoldRows]:
        """What is fitted and what is validated before the test slice, see `slices.py`; at least one fold."""
        horizon, early = self.layout.spec.horizon_ms, self.early
        found = [
            FoldRows(
                until,
                early.take(early.as_of + horizon <= until),
                early.within(*span),
                until - horizon + 1,
            )
            for until, span in self.slices.folds(horizon)
        ]
        good = [fold for fold in found if tells(fold.fit) and tells(fold.later)]
        until = self.slices.calibration[0] if self.slices.calibration else self.slices.train[1]
        apart = self.slices.calibration is None
        return good or [FoldRows(until, self.train, self.calibration, self.slices.train[1], apart)]

    @property
    def early_before_ms(self) -> int:
        """What of the usable examples is `early`: as of before this."""
        return self.slices.test[0] - self.layout.spec.horizon_ms + 1

    def stream(
        self, config: TrainConfig, before_ms: int | None = None, *, apart: bool = False
    ) -> Shards | None:
        """What a network learns from on disk: the usable rows as of before `before_ms`, thinned and weighed as rows in
        memory are. apart: without the customers held out. None where nothing is streamed."""
        if self.streamed is None:
            return None
        customer, as_of, snapshot = self.streamed.customer, self.streamed.as_of, self.streamed.snapshot
        usable = self.streamed.labels(self.target) != CANCELLED
        if before_ms is not None:
            usable &= as_of < before_ms
        if apart:
            usable &= ~self.held[customer]
        rows = np.flatnonzero(usable)
        many = config.stream_rows_max, config.rows_a_customer_max, config.seed
        rows = rows[thinned(customer[rows], snapshot[rows], *many)]
        return self.streamed.only(rows, weighed(customer[rows], as_of[rows], snapshot[rows]), self.target)

    @cached_property
    def calibration(self) -> Examples:
        return self._slice("calibration")

    @cached_property
    def test(self) -> Examples:
        return self._slice("test")

    def _slice(self, name: str) -> Examples:
        return self.drawn.take((self.slice_of == name) & (self.drawn.label != CANCELLED))


def prepare(
    layout: Layout,
    known: Known,
    config: TrainConfig,
    progress: Callable[[float], None] = lambda _: None,
    engine: Engine = HERE,
    folder: Path | None = None,
) -> Prepared:
    """Draw the examples and the panels, part by part by an engine. folder: for a configuration that streams, a new one,
    for what networks read; found in this process, whatever the engine. Raises SpecError (history too short), JobFailed,
    OSError."""
    spec, log, until, seed = layout.spec, known.log, known.until_ms, config.seed
    slices = plan_slices(spec, int(log.time.min()), until)
    start, horizon = slices.test[0], spec.horizon_ms
    # Whole horizons, as the threshold is chosen on one: a shorter window has lower peaks. Scores need no label.
    whole = max((until - start) // horizon, 1) * horizon
    spans = ((start - horizon, start), (start, min(start + whole, until)), (until - horizon, until))
    points_max = max(config.examples_max // 2, POINTS_MIN)
    panels = tuple(Panel(*span, panel_of(spec, log, span, points_max, seed)) for span in spans)
    streams = config.stream_rows_max > 0
    kept_max = FEWEST if streams else config.examples_max
    wanted = wanted_of(layout, log, until, kept_max, config.snapshot_every_ms, seed, panels)
    found = gather_by(engine, layout, log, wanted, progress)
    history, held = History(layout, log, until), held_out(spec, log.customers)
    streamed = None
    if streams:
        assert folder is not None
        streamed = stream_out(folder, history, wanted)
        drawn = streamed.sample(config.examples_max, seed)
        drawn = drawn.take(np.lexsort((drawn.as_of, drawn.customer)))
    else:
        drawn = history.examples(Points.joined(layout, [found.decisions, found.snapshots]))
    before_test, in_test, recent = (
        Decisions(panel.start_ms, history.examples(points))
        for panel, points in zip(panels, found.panels, strict=True)
    )
    slice_of = slices.of(drawn, held)
    return Prepared(layout, known, slices, held, drawn, slice_of, before_test, in_test, recent, streamed)


def tells(rows: Examples) -> bool:
    """Whether there is something to learn from them."""
    return len(rows) >= ROWS_MIN and 0 < int(rows.churned.sum()) < len(rows)


def check_slices(prepared: Prepared) -> None:
    """Raises SpecError when a slice cannot carry its task, for any of the targets."""
    for target, each in enumerate(prepared.by_target):
        whose = f" for target {prepared.layout.spec.target_names[target]}" if target else ""
        for name in ("train", "calibration", "test"):
            rows: Examples = getattr(each, name)
            churned = int(rows.churned.sum())
            if not tells(rows):
                raise SpecError(
                    f"the {name} slice has {len(rows)} labelled rows{whose}, {churned} of them churned: too few to "
                    "learn from",
                    hint="use a longer log, another --horizon, or an eligibility that leaves more customers",
                )
    if not prepared.test.snapshot.any():
        raise SpecError(
            "the test slice has no snapshot", hint="set snapshot_every_ms below the length of the slice"
        )
