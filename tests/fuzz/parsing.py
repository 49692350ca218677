"""Malformed records through the parser, under several specs and mappings: no crash, and counts that add up.

What happens is decided by the seed alone: the same seed gives the same records, the same refusals and the same digest
of every column. A batch that makes the parser raise is halved until the one record that does it is found.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.events.parse import Parsed, Parser
from ebbtide.featurestore.spec import Spec, load_spec, parse_spec
from ebbtide.ops.config.settings import DEFAULT_SPEC
from tests.support.fuzz import fuzzed
from tests.support.seams.streams import LogRecord

CHUNK = 5_000
"""Records made at once: few enough that memory says nothing of them."""
BATCH_MAX = 1_024
REASONS = {str(reason) for reason in Reason} - {str(Reason.BAD_ROW), str(Reason.MISPLACED)}
"""What a record of Kafka may be refused for."""
CRASHES_KEPT = 20
GROWTH_BYTES_MAX = 64 << 20
"""By how much the process may grow after its first tenth: a leak of 70 bytes a record shows."""
COLUMNS = ("customer", "kind", "time", "value", "event_id", "position")

NESTED = {
    "name": "nested", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}, "unknown": "ignore",
    "mapping": {
        "user_id": "who.id", "type": "event.name", "ts": "when", "event_id": "meta.0", "value": "data.amount",
        "properties": "data",
    },
    "kinds": [
        {"name": "view", "types": ["view", "page view"]},
        {"name": "order", "aggregate": ["sum", "last"], "value": "properties.total.gross", "stamp": "day_end"},
        {"name": "mail", "role": "contact"},
        {"name": "renewal", "role": "attribute", "attribute": "date", "value": "properties.renewal"},
        {"name": "seats", "role": "attribute"},
        {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
    ],
}  # fmt: skip
"""Everything that a mapping and a kind's value can be: nested, renamed, unknown types ignored."""


def parsers() -> list[tuple[Spec | None, Parser]]:
    """What records are made for, and parsed under. None: events of our own contract, for the demo's spec."""
    demo = load_spec(DEFAULT_SPEC)
    ours = [*(load_spec(path) for path in sorted(DEFAULT_SPEC.parent.glob("*.yaml"))), parse_spec(NESTED)]
    lenient = demo.model_copy(update={"unknown": "ignore"})
    return [(None, Parser(demo)), (None, Parser(lenient)), *((spec, Parser(spec)) for spec in ours)]


@dataclass
class Parsing:
    """What became of the records. `digest`: of all columns and refusals, 16 hex digits."""

    records: int = 0
    events: int = 0
    tombstones: int = 0
    ignored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    grown_bytes: int = 0
    digest: str = ""

    @property
    def adds_up(self) -> bool:
        """Each record is exactly one of: an event, a tombstone, ignored, rejected; one that crashed is none."""
        return self.events + self.tombstones + self.ignored + self.rejected.total() == self.records


def fuzz_parser(
    seed: int,
    n: int,
    tell: Callable[[int], None] = lambda _: None,
    ours: Sequence[tuple[Spec | None, Parser]] = (),
) -> Parsing:
    """n records, in batches of 1 to BATCH_MAX, under `ours` (`parsers()`) drawn at random. `tell` hears how many."""
    found, digest, rng = Parsing(), hashlib.blake2b(digest_size=8), random.Random(seed)
    ours = ours or parsers()
    process, settled_bytes = psutil.Process(), 0 if n else psutil.Process().memory_info().rss
    while found.records < n:
        spec, parser = ours[rng.randrange(len(ours))]
        records = fuzzed(rng.getrandbits(48), min(CHUNK, n - found.records), spec)
        at = 0
        while at < len(records):
            batch = records[at : at + rng.choice([1, rng.randrange(1, 50), rng.randrange(1, BATCH_MAX)])]
            at += len(batch)
            found.records += len(batch)
            _parse(parser, batch, found, digest)
        tell(found.records)
        if not settled_bytes and found.records >= n / 10:
            settled_bytes = process.memory_info().rss
    found.digest = digest.hexdigest()
    found.grown_bytes = max(process.memory_info().rss - settled_bytes, 0)
    if not found.adds_up:
        found.wrong.append("events + tombstones + ignored + rejected are not the records")
    if found.grown_bytes > GROWTH_BYTES_MAX:
        found.wrong.append(f"the parser's process grew by {found.grown_bytes >> 20} MiB")
    if found.rejected.keys() - REASONS:
        found.wrong.append(f"reasons that nobody knows: {sorted(found.rejected.keys() - REASONS)}")
    return found


def _parse(parser: Parser, batch: Sequence[LogRecord], found: Parsing, digest: "hashlib.blake2b") -> None:
    try:
        parsed = parser.parse(batch)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        if len(batch) == 1:
            if len(found.crashes) < CRASHES_KEPT:
                found.crashes.append(f"{error!r:.200} for {batch[0]!r:.400}")
            return
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            _parse(parser, half, found, digest)
        return
    found.events += len(parsed.events) - len(parsed.tombstones)
    found.tombstones += len(parsed.tombstones)
    found.ignored += parsed.ignored
    found.rejected.update(str(bad.reason) for bad in parsed.rejected)
    found.wrong += _inconsistent(batch, parsed)[: CRASHES_KEPT - len(found.wrong)]
    for column in COLUMNS:
        digest.update(getattr(parsed.events, column).tobytes())
    digest.update(repr([(bad.index, bad.reason, bad.detail) for bad in parsed.rejected]).encode())


def _inconsistent(batch: Sequence[LogRecord], parsed: Parsed) -> list[str]:
    """What a batch's outcome says that cannot be."""
    index = [bad.index for bad in parsed.rejected]
    position = parsed.events.position.tolist()
    taken = {*position} | {batch[i].offset for i in index if 0 <= i < len(batch)}
    wrong = {
        "the batch's counts do not add up": len(position) + len(index) + parsed.ignored != len(batch),
        "a record is refused twice, or out of order": index != sorted(set(index)),
        "events are not in offset order": position != sorted(set(position)),
        "a record is both event and refused": len(taken) != len(position) + len(index),
        "a customer's id is out of bounds": any(not 1 <= len(c) <= 128 for c in parsed.events.customers),
        "a time is out of range": bool((parsed.events.time < 1).any()),
    }
    return [what for what, is_so in wrong.items() if is_so]
