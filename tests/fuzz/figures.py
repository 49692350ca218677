"""What was found, as a table and under the names of `--json`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from tests.fuzz.parsing import Parsing
from tests.fuzz.requesting import Requesting

REQUESTS_TELLING, ANSWERS = 1_000, (200, 400, 401, 404)
"""Among so many requests each of these answers is due."""


@dataclass
class Serving:
    """What the worker made of the records. `expected`: what the parser says of them; `dead letters`: by reason, in
    Kafka; `batches`: written by hand, by recipe; `refused`: those that the broker did not take, by recipe;
    `grown_bytes`: from ready to its most; `late_bytes`: from half of the batches to the end, both dealt with."""

    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    requests: Requesting = field(default_factory=Requesting)
    grown_bytes: int = 0
    late_bytes: int = 0
    wrong: list[str] = field(default_factory=list)


def figures(parsing: Parsing, serving: Serving, seconds: dict[str, float], seed: int) -> dict[str, Any]:
    """What `--json` holds. `records` is the sum of all that was parsed, here and in the worker."""
    requests = serving.requests
    rejected = Counter(parsing.rejected)
    for name, n in serving.counts.items():
        if name.startswith("rejected "):
            rejected[name.removeprefix("rejected ")] += n
    # The worker's events hold its tombstones: each of them is folded.
    events = parsing.events + parsing.tombstones + serving.counts["events"]
    ignored = parsing.ignored + serving.counts["ignored"]
    records = parsing.records + serving.records
    failures = [*parsing.crashes, *parsing.wrong, *serving.wrong, *requests.failures]
    if events + ignored + rejected.total() != records:
        failures.append("events + ignored + rejected are not the records")
    if requests.requests >= REQUESTS_TELLING:
        # A face that refuses everything, or fails at everything, breaks no rule of a single answer.
        failures += [f"of all requests none was answered {s}" for s in ANSWERS if not requests.answers[s]]
    return {
        "seed": seed, "records": records, "records_parsed": parsing.records, "records_through_kafka": serving.records,
        "events": events, "tombstones_parsed": parsing.tombstones, "ignored": ignored,
        "rejected": dict(sorted(rejected.items())),
        "rejected_total": rejected.total(), "dead_letters": serving.letters.total(),
        "batches": dict(sorted(serving.batches.items())), "batches_refused": dict(sorted(serving.refused.items())),
        "http_requests": requests.requests,
        "http_answers": {str(status): n for status, n in sorted(requests.answers.items())}, "http_cut": requests.cut,
        "crashes": len(parsing.crashes), "failures": failures, "digest": parsing.digest,
        "parser_grown_bytes": parsing.grown_bytes, "worker_grown_bytes": serving.grown_bytes,
        "worker_late_bytes": serving.late_bytes,
        "seconds": round(sum(seconds.values()), 1), "seconds_by_part": {k: round(v, 1) for k, v in seconds.items()},
    }  # fmt: skip


def table_of(data: dict[str, Any]) -> Table:
    table = Table(title=f"Fuzzing, seed {data['seed']}", title_justify="left")
    table.add_column("what")
    table.add_column("how many", justify="right")
    rows = {
        "records through the parser": data["records_parsed"],
        "records through Kafka and a worker": data["records_through_kafka"],
        "events and tombstones": data["events"], "ignored": data["ignored"], "rejected": data["rejected_total"],
        **{f"  {reason}": n for reason, n in data["rejected"].items()},
        "batches written by hand": sum(data["batches"].values()),
        **{f"  {recipe}": n for recipe, n in data["batches"].items()},
        "  of them refused by the broker": sum(data["batches_refused"].values()),
        "HTTP requests": data["http_requests"], **{f"  {status}": n for status, n in data["http_answers"].items()},
        "  cut": data["http_cut"], "crashes": data["crashes"], "failures": len(data["failures"]),
    }  # fmt: skip
    for what, n in rows.items():
        table.add_row(what, f"{n:,}")
    for part, seconds in data["seconds_by_part"].items():
        table.add_row(f"seconds, {part}", f"{seconds:,.1f}")
    for who in ("parser", "worker"):
        table.add_row(f"MiB that the {who} grew by", f"{data[who + '_grown_bytes'] / 2**20:,.0f}")
    table.add_row("MiB that the second half left in it", f"{data['worker_late_bytes'] / 2**20:,.0f}")
    return table
