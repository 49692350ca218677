"""What should be decided of one customer and what their alerts should say, from the definitions, slowly and apart.

It takes one customer's decision points one by one, as plain numbers, and keeps a story of what was said so far. It
shares no code with `stream/policy.py` nor with `stream/outputs/compose.py`: no NumPy, no records, no pydantic; an alert
is a dictionary. So where they agree, two readings of the design agree, not one program with itself.

    opened       p is at least `enter`, nobody's episode is open, and the cool-down of the last one is over
    resolved     p has been below `exit`, score after score, for `dwell`; one score at or above it starts that again
    terminated   the customer left while an episode was open
    over         (back after memory, or expired) an open episode is resolved, without a score; all above is forgotten,
                 but who is back goes on from the number last said
    forgotten    (a tombstone) everything above is forgotten, and nothing is said
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tests.support.oracle.oracle import EVENT, EXPIRED, RESET, RETURNED, SILENCE, TERMINAL

DAY = 86_400_000
REASONS = 3
CAUSE_NAMES = {
    EVENT: "event",
    SILENCE: "silence",
    TERMINAL: "terminal",
    RETURNED: "returned",
    EXPIRED: "expired",
}


class Rules(NamedTuple):
    """When an episode opens and closes: probabilities, and ms of event time."""

    enter: float
    exit: float
    dwell: int
    cooldown: int


class Decided(NamedTuple):
    """Something that was said: `kind` of transition, at `as_of`, with `sequence`."""

    kind: str
    as_of: int
    sequence: int


@dataclass(frozen=True)
class Story:
    """What is known of a customer's episodes since they were last forgotten.

    `said`: the last thing said. `opened_at`: when the last episode began. `low`: since when every score was below
    `exit`, within an open episode. `quiet_until`: when the cool-down ends. `score`, `scored_at`: the last one.
    """

    said: Decided | None = None
    opened_at: int = 0
    low: int | None = None
    quiet_until: int = 0
    score: float = 0.0
    scored_at: int = 0

    @property
    def open(self) -> bool:
        return self.said is not None and self.said.kind == "opened"

    @property
    def fields(self) -> dict[str, float]:
        """The same as the record's episode fields have it."""
        return {
            "episode_opened_at": self.opened_at,
            "below_exit_at": self.low or 0,
            "cooldown_until": self.quiet_until,
            "scored_at": self.scored_at,
            "sequence": self.said.sequence if self.said else 0,
            "score": self.score,
            "episode_state": int(self.open),
        }


def next_story(story: Story, as_of: int, cause: int, p: float, rules: Rules) -> tuple[Story, Decided | None]:
    """One more point of the customer: the story that follows, and what is said, if anything.

    p is the float32 that the model gave, NaN when it gave none: then nothing is decided. Thresholds are compared as
    what they are in float32, since a p that is printed as the threshold counts as having reached it.
    """
    if cause == RESET:
        return Story(), None
    if cause in (RETURNED, EXPIRED):
        story, decided = _say(story, "resolved", as_of, rules) if story.open else (story, None)
        return (Story(said=story.said) if cause == RETURNED else Story()), decided
    if cause == TERMINAL:
        return _say(story, "terminated", as_of, rules) if story.open else (story, None)
    if math.isnan(p):
        return story, None
    story = replace(story, score=p, scored_at=as_of)
    if story.open:
        if p >= as_float32(rules.exit):
            return replace(story, low=None), None
        low = as_of if story.low is None else story.low
        story = replace(story, low=low)
        return _say(story, "resolved", as_of, rules) if as_of - low >= rules.dwell else (story, None)
    if p >= as_float32(rules.enter) and as_of >= story.quiet_until:
        return _say(replace(story, opened_at=as_of), "opened", as_of, rules)
    return story, None


def _say(story: Story, kind: str, as_of: int, rules: Rules) -> tuple[Story, Decided]:
    last = story.said.sequence if story.said else 0
    decided = Decided(kind, as_of, as_of if as_of > last else last + 1)
    quiet = story.quiet_until if kind == "opened" else as_of + rules.cooldown
    return replace(story, said=decided, low=None, quiet_until=quiet), decided


def as_float32(value: float) -> float:
    """The nearest 32-bit float."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


class Origin(NamedTuple):
    """Where the event lies that a decision follows from: of a silence the last activity, -1 when it is of a file."""

    topic: str
    partition: int
    offset: int


class ModelFacts(NamedTuple):
    """What an alert says of the model and the spec behind it."""

    name: str
    version: int
    enter: float
    layout: str
    horizon_ms: int


class Explained(NamedTuple):
    """Of every feature: its name, how it is put in words, its value and its contribution in logits."""

    names: Sequence[str]
    words: Sequence[Callable[[float], str]]
    values: Sequence[float]
    contributions: Sequence[float]


def alert_of(
    decided: Decided,
    customer: str,
    cause: int,
    p: float,
    origin: Origin,
    model: ModelFacts,
    explained: Explained | None,
) -> dict[str, Any]:
    """The alert as JSON has it, read back. `explained` None: nothing could be, or nothing had to be."""
    left = cause not in (EVENT, SILENCE)
    return {
        "schema_version": 1,
        "alert_id": id_of(origin.topic, customer, decided),
        "customer": customer,
        "sequence": decided.sequence,
        "transition": decided.kind,
        "probability": None if left else round(p, 6),
        "threshold": model.enter,
        "horizon_days": model.horizon_ms / DAY,
        "reasons": [] if left or explained is None else _reasons(explained, decided.kind == "opened"),
        "model": model.name,
        "model_version": model.version,
        "layout": model.layout,
        "decision": {
            "as_of": _instant(decided.as_of),
            "cause": CAUSE_NAMES[cause],
            "topic": origin.topic,
            "partition": origin.partition,
            "offset": None if origin.offset < 0 else origin.offset,
        },
    }


def id_of(topic: str, customer: str, decided: Decided) -> str:
    """The alert's id: of the input topic, the customer, the transition and its sequence."""
    what = "\0".join([topic, customer, decided.kind, str(decided.sequence)])
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def _reasons(explained: Explained, for_churn: bool) -> list[dict[str, Any]]:
    """The loudest that speak for what was said, loudest first; of equals the one that the spec lists first."""
    sign = 1 if for_churn else -1
    speaking = [(c * sign, -n) for n, c in enumerate(explained.contributions) if c * sign > 0]
    loudest = [-n for _, n in sorted(speaking, reverse=True)[:REASONS]]
    return [
        {
            "feature": explained.names[n],
            "value": _short(explained.values[n]),
            "contribution": _short(explained.contributions[n]),
            "words": explained.words[n](explained.values[n]),
        }
        for n in loudest
    ]


def _short(value: float) -> float:
    """Four significant digits."""
    return float(json.loads(f"{value:.3e}"))


def _instant(ms: int) -> str:
    """ISO 8601 in UTC, with microseconds where there are any."""
    moment = datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{ms % 1000:03d}000Z" if ms % 1000 else f"{moment}Z"
