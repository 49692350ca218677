"""The gate of publication: one function, called by whoever publishes, which says what speaks against a model.

    looked at                         refused when
    snapshots, moments, slices        AUROC below a baseline's, or log loss above it, by more than WORST and surely so
    moments that count                p is off by more than RATIO_WORST, and by more than chance
    alerts on the test slice          the share alerted is more than ALERTS_MOST times the share asked for
    every figure                      it cannot be known

    looked at                         cautioned when
    people who judge                  they are fewer than PEOPLE_MIN, or fewer than OUTCOME_MIN of either outcome
    alerts on the test slice          the share alerted is off by ALERTS_APART, or too few customers judge a flood

"Surely" is by 95 % intervals, for parts in all of them at once: of forty comparisons two would fail by chance. Each
refusal names its figure and what to try. It knows figures; how they came about is not its affair.

A *caution* keeps nothing from being published. Of a first log of forty customers nothing can be sure, neither that its
model is good nor that it is worse than a rule: a gate that refused it would send everybody to `--force`, which waives
what is sure as well. A gate that says nothing would be taken for one that has found nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from ebbtide.model.errors import ModelRefused
from ebbtide.model.judging.evaluate import MODEL, Evaluation, Interval
from ebbtide.model.judging.parts import Part
from ebbtide.model.judging.thresholds import Thresholds

WORST = {"auroc": -0.005, "log_loss": 0.005}
"""Worse than a baseline by so much is still published: less than anyone would see in service."""
RATIO_WORST = 2.0
"""Mean probability over the share that churned, or the other way round: beyond this p is no probability."""
ALERTS_MOST = 2.5
"""Alerts given over alerts asked for: more is a flood. (A threshold is chosen for at most twice.) Fewer are no reason
to refuse, since where nobody new comes, whom a service decides upon gets better and better; the card says how few."""
CUSTOMER_HORIZONS_MIN = 200
"""From so many customers on a share of alerts is judged."""
PEOPLE_MIN, OUTCOME_MIN = 100, 30
"""With fewer people, or of one outcome, an AUROC is not known to a tenth: by Hanley and McNeil's formula the 95 %
interval of .80 is .10 to either side with 30 against 70, .17 with 10 against 40, .20 with 10 against 11."""
ALERTS_APART = 1.5
"""Alerts given over alerts asked for, or the other way round: so much more or less is a surprise to who reads them."""
WORDS = {"auroc": "AUROC", "log_loss": "log loss"}
SHOWN_MAX = 5
SIMULATE = (
    "`ebbtide policy simulate` says what other thresholds would have given; `alerts_per_minute_max` of a policy bounds "
    "them"
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What speaks against a model, or has to be known of it: the figure, and what to try."""

    figure: str
    advice: str

    def __str__(self) -> str:
        return f"{self.figure}; {self.advice}"


def refusals(
    evaluation: Evaluation, moments: Sequence[Part], slices: Sequence[Part], tested: Thresholds | None
) -> list[Refusal]:
    """All that speaks against a model, the gravest first; nothing: it may be published.

    evaluation: of snapshots. moments, slices: see `parts.py`. tested: what thresholds, chosen before the test slice,
    came to in it; None where nobody came up for a decision.
    """
    if evaluation.unknown:
        return [
            Refusal(
                f"{', '.join(evaluation.unknown[:3])} cannot be computed on the {evaluation.rows:,} snapshots of the "
                f"test slice, {evaluation.base_rate:.1%} of which churned",
                "use a longer log or another --horizon: both outcomes must be there to judge by",
            )
        ]
    return [
        *_worse("on snapshots", evaluation.values, evaluation.differences),
        *(refusal for part in (*moments, *slices) for refusal in _of_part(part)),
        *(refusal for part in moments for refusal in _bias(part)),
        *_alerts(tested),
    ]


def cautions(evaluation: Evaluation, tested: Thresholds | None) -> list[Refusal]:
    """What does not keep a model from being published, and has to be known by whoever believes its figures or reads
    its alerts. Arguments as of `refusals`."""
    return [*_few(evaluation), *_alerts_apart(tested)]


def check_gate(found: Sequence[Refusal], title: str, *, force: bool = False) -> None:
    """Raises ModelRefused when anything speaks against the model; with `force` it goes through, and whoever publishes
    writes into the card what was found."""
    if not found or force:
        return
    more = len(found) - SHOWN_MAX
    figures = "; ".join(each.figure for each in found[:SHOWN_MAX]) + (
        f"; and {more} more" if more > 0 else ""
    )
    advice = dict.fromkeys(each.advice for each in found[:SHOWN_MAX])
    raise ModelRefused(
        f"model {title} is not published: {figures}",
        hint=", or ".join(advice) + "; --force publishes it with these words in its card",
    )


def _worse(
    where: str,
    values: Mapping[str, Mapping[str, float | None]],
    differences: Mapping[str, Mapping[str, Interval]],
) -> Iterator[Refusal]:
    """Per metric the baseline that leads most surely, if one does."""
    for metric, worst in WORST.items():
        sign = 1.0 if worst < 0 else -1.0  # as if more were better
        lead = {
            name: max(sign * bound for bound in bounds)
            for name, bounds in differences.get(metric, {}).items()
        }
        if not lead or not min(lead.values()) < sign * worst:
            continue
        name = min(lead, key=lambda each: (lead[each], each))
        low, high = differences[metric][name]
        yield Refusal(
            f"{WORDS[metric]} {values[metric][MODEL]:.3f} against {values[metric][name]:.3f} of {name} {where}, "
            f"difference {low:+.3f} to {high:+.3f}",
            ADVICE[name],
        )


ADVICE = {
    "recency": "give it more history or another --horizon, or serve a rule: days of silence say more than this model",
    "logistic": "try --without-sequence, more history, or more --examples-max",
    "trees": "give the forest more: --forest-share 1, or more --examples-max",
}


def _of_part(part: Part) -> Iterator[Refusal]:
    if part.counts and part.values and part.differences:
        yield from _worse(
            f"where {part.name}" if "is " in part.name else part.name, part.values, part.differences
        )


def _bias(part: Part) -> Iterator[Refusal]:
    ratio = part.ratio
    if not part.counts or ratio is None or part.within or 1 / RATIO_WORST <= ratio <= RATIO_WORST:
        return
    yield Refusal(
        f"mean probability {part.predicted:.1%} against {part.base_rate:.1%} that churned {part.name}",
        "has the base rate moved? train on a later log, with --labels-until nearer to today",
    )


def _alerts(tested: Thresholds | None) -> Iterator[Refusal]:
    if tested is None or tested.alerted is None or tested.customer_horizons < CUSTOMER_HORIZONS_MIN:
        return
    if tested.alerted <= tested.alert_rate * ALERTS_MOST:
        return
    tie = f" ({tested.tie_words})" if tested.tie_words else ""
    yield Refusal(
        f"{tested.alerted:.1%} of the customers alerted on the test slice, {tested.alert_rate:.1%} asked for{tie}",
        "ask for another --alert-rate (many customers with one and the same score stand or fall together), or train on "
        "a later log",
    )


def _few(evaluation: Evaluation) -> Iterator[Refusal]:
    rarer = min(evaluation.people_churned, evaluation.people_stayed)
    if evaluation.people >= PEOPLE_MIN and rarer >= OUTCOME_MIN:
        return
    low, high = evaluation.intervals["auroc"][MODEL]
    yield Refusal(
        f"judged by {evaluation.people:,} customers, {evaluation.people_churned:,} of whom churned and "
        f"{evaluation.people_stayed:,} did not, at one date or another: its AUROC of "
        f"{evaluation.values['auroc'][MODEL]:.2f} may as well be {low:.2f} or {high:.2f}, and that a baseline is "
        "better would not be seen",
        f"believe it from {PEOPLE_MIN} customers and {OUTCOME_MIN} of each on: train again when the log has them",
    )


def _alerts_apart(tested: Thresholds | None) -> Iterator[Refusal]:
    if tested is None or tested.alerted is None:
        return
    given, asked, many = tested.alerted, tested.alert_rate, tested.customer_horizons
    said = f"{given:.1%} of the customers alerted on the test slice, {asked:.1%} asked for"
    if many < CUSTOMER_HORIZONS_MIN:
        if given > asked * ALERTS_MOST:
            yield Refusal(f"{said}: a flood, if {many:,} customers were enough to say so", SIMULATE)
        return
    # By chance alone: a quantile of as many customers was chosen, and as many were looked at.
    chance = 2 * sqrt(2 * asked * (1 - asked) / many)
    if 1 / ALERTS_APART <= given / asked <= ALERTS_APART or abs(given - asked) <= chance:
        return
    grown = "grew" if given > asked else "shrank"
    moved = (
        f"the share of customers at so high a risk {grown} to {given / asked:.2g} times what it was a horizon before; "
        "the published thresholds are chosen on a later horizon, and meet what was asked for where that has ended"
    )
    yield Refusal(f"{said}: {tested.tie_words or moved}", SIMULATE)
