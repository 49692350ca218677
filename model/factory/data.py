"""The stages that know events alone: read them, count them, say what is expected, name what does not fit."""

import json
from dataclasses import asdict, dataclass

from ebbtide.featurestore.check.history import read_history
from ebbtide.model.examples.known import Known, known_log
from ebbtide.model.factory.line import ANOMALIES, PICTURE, SCHEMA, STATISTICS
from ebbtide.model.factory.picture import draw_statistics
from ebbtide.model.factory.plan import Work
from ebbtide.model.factory.schema import Anomaly, Schema, check, dump_schema, infer
from ebbtide.model.factory.statistics import Statistics, statistics_of
from ebbtide.model.factory.values import Carriers


@dataclass(frozen=True, slots=True)
class Ingested:
    """known: the log as it may be learned from. The rest of what its files held, as `EventLog` says."""

    known: Known
    rows: int
    ignored: int
    misfits: dict[str, int]
    unknown_types: dict[str, int]


def carriers(_name: str, _work: Work) -> Carriers:
    """All of it is columns and numbers."""
    return {}


def example_gen(work: Work) -> Ingested:
    """Raises SpecError: a file that cannot be read, rows that do not fit, no event."""
    plan = work.plan
    with work.progress.of("reading events", 5) as share:
        log = read_history(
            list(plan.events) if len(plan.events) > 1 else plan.events[0],
            plan.spec,
            progress=share,
            engine=plan.engine,
        )
        known = known_log(work.layout, log.events, plan.labels_until_ms)
    misfits = {str(reason): count for reason, count in log.problems.counts.items()}
    return Ingested(known, log.rows, log.ignored, misfits, dict(log.problems.unknown_types))


def statistics_gen(work: Work) -> Statistics:
    """With `statistics.json` and a picture for people."""
    found: Ingested = work.values("example_gen")
    with work.progress.of("counting events", 0.5):
        made = statistics_of(
            work.plan.spec, found.known.log, found.known.until_ms, work.plan.spans, rows=found.rows,
            ignored=found.ignored, misfits=found.misfits, unknown_types=found.unknown_types, beyond=found.known.beyond,
        )  # fmt: skip
        (work.folder / STATISTICS).write_text(json.dumps(made.as_json(), indent=2) + "\n", encoding="utf-8")
        draw_statistics(work.folder / PICTURE, made)
    return made


def schema_gen(work: Work) -> Schema:
    """The schema that was given, or one inferred; as `schema.yaml`, for whoever edits it."""
    schema = work.plan.schema or infer(work.values("statistics_gen"))
    (work.folder / SCHEMA).write_text(dump_schema(schema), encoding="utf-8")
    return schema


def example_validator(work: Work) -> list[Anomaly]:
    """What does not fit, errors first; `anomalies.json` for scripts. It stops nothing: `transform` does."""
    found = check(work.values("statistics_gen"), work.values("schema_gen"))
    text = json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False)
    (work.folder / ANOMALIES).write_text(text + "\n", encoding="utf-8")
    return found
