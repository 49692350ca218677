"""What should be decided of one customer and what their alerts should say, from the definitions, slowly and apart.

It takes one customer's decision points one by one, as plain numbers, and keeps a story of what was said so far, one for
each target. It shares no code with `stream/decision/` nor with `stream/outputs/compose.py`: no NumPy, no records, no
pydantic; an alert is a dictionary. So where they agree, two readings of the design agree, not one program with itself.

    opened       p is at least `enter`, nobody's episode is open, and the cool-down of the last one is over
    escalated    p is in a band above every one that the open episode has been in
    resolved     p has been below `exit`, score after score, for `dwell`; one score at or above it starts that again
                 or the customer left while an episode was open
    corrected    p is below `exit`, for the first time, at an event of before the episode's beginning: it came late
    over         (back after memory, or expired) an open episode is resolved, without a score; all above is forgotten,
                 but who is back goes on from the number last said
    forgotten    (a tombstone) everything above is forgotten, and nothing is said

Whoever is held out has a story like everybody else, told to nobody. Of a budget every partition has its share, and
counts its openings by stretches of event time (`Purse`).
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
    """When an episode opens and closes: probabilities, and ms of event time. `bands`: (name, from which p on), lowest
    first; the first is that of `enter`."""

    enter: float
    exit: float
    dwell: int
    cooldown: int
    bands: tuple[tuple[str, float], ...] = ()

    def named(self) -> tuple[tuple[str, float], ...]:
        """The bands, of which there is always one."""
        return self.bands or (("high", self.enter),)

    def band(self, p: float) -> int:
        """Which of them p is in."""
        return max([i for i, (_, lowest) in enumerate(self.named()) if p >= as_float32(lowest)], default=0)


class Decided(NamedTuple):
    """Something that was said: what became of the episode and why, at `as_of`, with `sequence`, in the band of that
    number; `told`: whether anybody hears it."""

    state: str
    cause: str
    as_of: int
    sequence: int
    band: int = 0
    told: bool = True


@dataclass(frozen=True)
class Story:
    """What is known of a customer's episodes since they were last forgotten.

    `said`: the last thing said. `opened_at`: when the last episode began. `low`: since when every score was below
    `exit`, within an open episode. `quiet_until`: when the cool-down ends. `band`: the highest of the last
    episode. `score`, `scored_at`: the last one.
    """

    said: Decided | None = None
    opened_at: int = 0
    low: int | None = None
    quiet_until: int = 0
    band: int = 0
    score: float = 0.0
    scored_at: int = 0

    @property
    def open(self) -> bool:
        return self.said is not None and self.said.state in ("opened", "escalated")

    @property
    def fields(self) -> dict[str, float]:
        """The same as the record's episode fields have it."""
        state = 0
        if self.open and self.said is not None:
            state = 1 if self.said.told else 2
        return {
            "episode_opened_at": self.opened_at,
            "below_exit_at": self.low or 0,
            "cooldown_until": self.quiet_until,
            "scored_at": self.scored_at,
            "sequence": self.said.sequence if self.said else 0,
            "score": self.score,
            "episode_state": state,
            "episode_band": self.band,
        }


@dataclass
class Purse:
    """What a partition may open: its share of `a_minute` in each stretch of so many minutes as give it one.

    The last four stretches are remembered; what is older than those counts as the oldest of them."""

    a_minute: float
    partitions: int
    counts: dict[int, int] = field(default_factory=dict)

    def price(self, enter: float, as_of: int) -> float:
        """From which p on an episode opens now."""
        minutes = 1
        while self.a_minute * minutes < self.partitions:
            minutes += 1
        share = self.a_minute * minutes / self.partitions
        used = self.counts.get(self._stretch(as_of, minutes), 0)
        if used > share - 1:
            return math.inf
        beyond = used / share - 0.5
        return enter if beyond <= 0 else enter + (1 - enter) * beyond * 2

    def pay(self, as_of: int) -> None:
        minutes = 1
        while self.a_minute * minutes < self.partitions:
            minutes += 1
        stretch = self._stretch(as_of, minutes)
        self.counts[stretch] = self.counts.get(stretch, 0) + 1
        while len(self.counts) > 4:
            del self.counts[min(self.counts)]

    def _stretch(self, as_of: int, minutes: int) -> int:
        stretch = as_of // (minutes * 60_000)
        return stretch if len(self.counts) < 4 else max(stretch, min(self.counts))


def next_story(
    story: Story,
    as_of: int,
    cause: int,
    p: float,
    rules: Rules,
    *,
    happened: int | None = None,
    told: bool = True,
    purse: Purse | None = None,
) -> tuple[Story, Decided | None]:
    """One more point of the customer: the story that follows, and what is said, if anything.

    p is the float32 that the model gave, NaN when it gave none: then nothing is decided. Thresholds are compared as
    what they are in float32, since a p that is printed as the threshold counts as having reached it. `happened`: when
    the event of the point did, None for a silence and for an event that is as new as the point. `told`: whether the
    customer is one of those who are told of. `purse`: what the customer's partition may open.
    """
    if cause == RESET:
        return Story(), None
    if cause in (RETURNED, EXPIRED):
        story, decided = (
            _say(story, "resolved", CAUSE_NAMES[cause], as_of, rules) if story.open else (story, None)
        )
        return (Story(said=story.said) if cause == RETURNED else Story()), decided
    if cause == TERMINAL:
        return _say(story, "resolved", "terminal", as_of, rules) if story.open else (story, None)
    if math.isnan(p):
        return story, None
    story = replace(story, score=p, scored_at=as_of)
    if story.open:
        if p >= as_float32(rules.exit):
            story = replace(story, low=None)
            if rules.band(p) <= story.band:
                return story, None
            return _say(replace(story, band=rules.band(p)), "escalated", "score", as_of, rules)
        if story.low is None and cause == EVENT and happened is not None and happened < story.opened_at:
            return _say(story, "corrected", "late_event", as_of, rules)
        low = as_of if story.low is None else story.low
        story = replace(story, low=low)
        return _say(story, "resolved", "score", as_of, rules) if as_of - low >= rules.dwell else (story, None)
    if p >= as_float32(rules.enter) and as_of >= story.quiet_until:
        if purse is not None and told:
            if p < as_float32(purse.price(rules.enter, as_of)):
                return story, Decided("opened", "held back", as_of, 0, rules.band(p), told=False)
            purse.pay(as_of)
        return _say(
            replace(story, opened_at=as_of, band=rules.band(p)), "opened", "score", as_of, rules, told=told
        )
    return story, None


def _say(
    story: Story, state: str, cause: str, as_of: int, rules: Rules, *, told: bool | None = None
) -> tuple[Story, Decided]:
    """What is said of an episode is told if its beginning was."""
    last = story.said.sequence if story.said else 0
    if told is None:
        told = story.said is not None and story.said.told
    decided = Decided(state, cause, as_of, as_of if as_of > last else last + 1, story.band, told)
    over = state == "resolved"
    quiet = as_of + rules.cooldown if over else story.quiet_until
    return replace(story, said=decided, low=None, quiet_until=quiet), decided


def is_held_out(customer: str, share: float, salt: str) -> bool:
    """Whether somebody is of the share who are decided about and told to nobody: whose id, with the salt before it, is
    drawn below that share by BLAKE2b."""
    drawn = hashlib.blake2b(b"\0".join([salt.encode(), customer.encode()]), digest_size=8).hexdigest()
    return int(drawn, 16) / 16**16 < share


def as_float32(value: float) -> float:
    """The nearest 32-bit float."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


class Origin(NamedTuple):
    """Where the event lies that a decision follows from: of a silence the last activity, -1 when it is of a file."""

    topic: str
    partition: int
    offset: int


class ModelFacts(NamedTuple):
    """What an alert says of the model, its policy and the spec behind it."""

    name: str
    version: int
    rules: Rules
    layout: str
    horizon_ms: int
    target: str = "activity"


class Explained(NamedTuple):
    """Of every feature: its name, its group, its value and its contribution in logits; how a group is put in words,
    whose loudest is of this index; and the sequence's contribution."""

    names: Sequence[str]
    groups: Sequence[str]
    words: Callable[[str, int], str]
    values: Sequence[float]
    contributions: Sequence[float]
    sequence: float


def alert_of(
    decided: Decided,
    customer: str,
    cause: int,
    p: float,
    origin: Origin,
    model: ModelFacts,
    explained: Explained | None,
    last_event: int,
    row: bytes = b"",
) -> dict[str, Any]:
    """The alert as JSON has it, read back. `explained` None: nothing could be, or nothing had to be. `last_event`: time
    of the target's last one, 0 for none, or where churn is no absence. `row`: the bytes that the model was given."""
    left = cause not in (EVENT, SILENCE)
    band, threshold = model.rules.named()[decided.band]
    return {
        "schema_version": 2,
        "alert_id": id_of(origin.topic, customer, decided, model.target),
        "customer": customer,
        "target": model.target,
        "sequence": decided.sequence,
        "state": decided.state,
        "cause": decided.cause,
        "band": band,
        "probability": None if left else round(p, 6),
        "logit": None if left or p in (0.0, 1.0) else math.log(p / (1 - p)),
        "threshold": threshold,
        "horizon_days": model.horizon_ms / DAY,
        "survival": None,
        "activity_in_days": None,
        "lost_at": _instant(last_event + model.horizon_ms) if last_event else None,
        "reasons": []
        if left or explained is None
        else _reasons(explained, decided.state in ("opened", "escalated")),
        "model": model.name,
        "model_version": model.version,
        "layout": model.layout,
        "row_sha256": None if left else hashlib.sha256(row + struct.pack("<q", decided.as_of)).hexdigest(),
        "decision": {
            "as_of": _instant(decided.as_of),
            "cause": CAUSE_NAMES[cause],
            "topic": origin.topic,
            "partition": origin.partition,
            "offset": None if origin.offset < 0 else origin.offset,
        },
    }


def id_of(topic: str, customer: str, decided: Decided, target: str = "activity") -> str:
    """The alert's id: of the input topic, the customer, the target, what became of the episode, and the sequence."""
    what = "\0".join([topic, customer, target, decided.state, str(decided.sequence)])
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def _reasons(explained: Explained, for_churn: bool) -> list[dict[str, Any]]:
    """The groups that speak loudest for what was said, loudest first; of equals the one that the spec lists first."""
    sign = 1 if for_churn else -1
    members: dict[str, list[int]] = {}
    for n, group in enumerate(explained.groups):
        members.setdefault(group, []).append(n)
    totals = dict.fromkeys(members, 0.0)
    for group, own in members.items():
        for n in own:
            totals[group] += explained.contributions[n]
    totals["sequence"] = explained.sequence
    order = list(totals)
    speaking = [group for group in order if totals[group] * sign > 0]
    loudest = sorted(speaking, key=lambda group: (-totals[group] * sign, order.index(group)))[:REASONS]
    reasons = []
    for group in loudest:
        own = members.get(group, [])
        top = max(own, key=lambda n: (explained.contributions[n] * sign, -n), default=-1)
        reasons.append(
            {
                "feature": explained.names[top] if own else "sequence",
                "group": group,
                "value": _short(explained.values[top]) if own else None,
                "contribution": _short(totals[group]),
                "words": explained.words(group, top),
            }
        )
    return reasons


def _short(value: float) -> float:
    """Four significant digits."""
    return float(json.loads(f"{value:.3e}"))


def _instant(ms: int) -> str:
    """ISO 8601 in UTC, with microseconds where there are any."""
    moment = datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{ms % 1000:03d}000Z" if ms % 1000 else f"{moment}Z"
