"""What `ebbtide policy simulate` does, step by step, and the tables it ends in."""

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.timestamps import epoch_ms, format_time
from ebbtide.model.serving.folder import locate
from ebbtide.model.serving.manifest import read_manifest
from ebbtide.model.serving.runtime import configure
from ebbtide.model.serving.scorer import Scorer
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps
from ebbtide.ops.errors import OpsError
from ebbtide.ops.policy.propose import at_enter, candidates, for_gain, for_rate
from ebbtide.ops.policy.report import Money, as_json, draw, table
from ebbtide.ops.policy.simulate import Outcome, Truth, score_log, simulate
from ebbtide.ops.replay.report import history_of
from ebbtide.ops.worker.compose import policy_of


class Asked(NamedTuple):
    """What is asked of a log: from when alerts count, and for what `enter` is to be proposed."""

    events: Path
    from_ms: int | None = None
    per_day: float | None = None
    value: float | None = None
    cost: float = 0.0
    saved: float = 1.0
    plots: Path | None = None

    @property
    def money(self) -> Money | None:
        return None if self.value is None else Money(self.value, self.cost, self.saved)


def run(present: Settings, other: Settings, asked: Asked, progress: Steps) -> tuple[Group, dict[str, Any]]:
    """Score the log once; decide it by the policy in force, by the other one, and by what is proposed for it."""
    per_day, money, plots = asked.per_day, asked.money, asked.plots
    version = locate(other.model)
    manifest = read_manifest(version)
    spec = manifest.parsed_spec()
    other.policy.check_spec(spec)
    try:
        policies = {
            name: policy_of(manifest, each.policy, spec.target_names)
            for name, each in (("in force", present), (str(other.policy.file or "as set"), other))
        }
    except ValueError as error:
        raise OpsError(f"the policy does not fit model {manifest.title}: {error}") from None
    progress(f"reading {asked.events.name}")
    log = read_history(asked.events, spec, progress=lambda share: progress.advance(share, 1.0))
    layout = Layout(spec)
    history = history_of(layout, log)
    learned = manifest.labels_until
    begin = (
        asked.from_ms
        if asked.from_ms is not None
        else epoch_ms(learned)
        if learned
        else int(log.events.time.min())
    )
    if begin >= history.known_until_ms:
        raise OpsError(
            f"nothing of the log lies after {format_time(begin)}, from where alerts are counted",
            hint="give --from an earlier date; the model may have learned from what follows it",
        )
    progress("loading the model")
    configure()
    scorer = Scorer.load(version, layout)
    progress("scoring")
    decisions = score_log(history, scorer, history.known_until_ms, other.topics.partitions)
    progress("deciding")
    truth = Truth.of(decisions, history, begin)
    found = {name: simulate(decisions, policy, truth) for name, policy in policies.items()}
    base, keep_exit = policies[list(policies)[-1]], other.policy.exit is not None

    def attempt(enter: float) -> Outcome:
        return simulate(decisions, at_enter(base, enter, keep_exit=keep_exit), truth)

    tried: list[Outcome] = []
    if per_day is not None or money is not None or plots is not None:
        listed = candidates(decisions, begin)
        for n, enter in enumerate(listed):
            progress.advance(n, len(listed), "trying other thresholds")
            tried.append(attempt(enter))
    proposed: dict[str, Outcome] = {}
    if per_day is not None and (best := for_rate(tried, per_day, attempt)) is not None:
        proposed[f"for {per_day:g} a day"] = best
    if money is not None and tried:
        proposed["for the greatest gain"] = for_gain(tried, money)
    if plots is not None and tried:
        progress("drawing")
        draw(plots, tried, list((found | proposed).items()), money)
    notes = []
    if learned and begin < epoch_ms(learned):
        notes.append(f"The model has learned from what lies before {learned}: these figures flatter.")
    if proposed:
        notes.append(
            "A proposal is chosen on the log that it is judged by: look at it with --from on a later one."
        )
    if per_day is not None and tried and f"for {per_day:g} a day" not in proposed:
        notes.append(f"No threshold opens as few as {per_day:g} a day: give the policy a budget.")
    data = {
        "model": manifest.title,
        "from": format_time(begin),
        "until": format_time(history.known_until_ms),
        "decision_points": int(decisions.points.scored.sum()),
        "policies": {name: as_json(each, money) for name, each in found.items()},
        "proposals": {name: as_json(each, money) for name, each in proposed.items()},
        "tried": [as_json(each, money) for each in tried],
    }
    rows = [*found.items(), *proposed.items()]
    return Group(table(rows, money), *(Text(note, style="dim") for note in notes)), data
