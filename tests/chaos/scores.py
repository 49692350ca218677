"""The score topic, read to its end: which version scored which decision point, and what a reader believes.

A decision follows from a score and the version that gave it, and which version served when is nobody's promise. So the
replay decides each point by the versions that say here that they scored it; the scores themselves are held against what
those versions say of the same rows. Invariant: nothing is dropped; a record that says nothing is in `odd`.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from ebbtide.ops.config.settings import Settings
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.outputs.scores import read_score
from tests.chaos.consumer import ForgottenWatch


class PointKey(NamedTuple):
    """A scored decision point. `offset`: of its event, of a silence the last activity's; `cause`: event or silence."""

    partition: int
    offset: int
    as_of: int
    cause: str


class ScoreSaid(NamedTuple):
    """What a score record says beside its point."""

    customer: str
    version: int
    p: float


@dataclass
class ScoresRead:
    """`said`: by point, each once; `duplicated`: how many more there were. `latest`: by customer, the point of the last
    score that no null has followed; `forgotten`: nulls by key; `odd`: what is no score, and why not."""

    said: dict[PointKey, list[ScoreSaid]] = field(default_factory=lambda: defaultdict(list))
    latest: dict[str, tuple[PointKey, ScoreSaid]] = field(default_factory=dict)
    duplicated: int = 0
    odd: list[tuple[int, str]] = field(default_factory=list)
    forgotten: Counter[bytes] = field(default_factory=Counter)
    watch: ForgottenWatch = field(default_factory=ForgottenWatch)

    def read(
        self, topic: str, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]], offset: int
    ) -> None:
        """The next record of a partition; `topic` is the input's, `offset` the record's own."""
        if value is None:
            self.latest.pop(key.decode(), None)
            self.forgotten[key] += 1
            self.watch.null(key, headers)
            return
        try:
            score = read_score(value)
        except ValueError as error:
            self.odd.append((offset, str(error)))
            return
        if key != score.customer.encode():
            self.odd.append((offset, f"under the key {key!r}"))
        point = PointKey(score.partition, score.offset, score.as_of, score.cause)
        said = ScoreSaid(score.customer, score.version, score.p)
        if said in self.said[point]:
            self.duplicated += 1
        else:
            self.said[point].append(said)
        self.latest[score.customer] = point, said
        self.watch.value(key, topic, score.partition, score.offset)


async def read_scores(settings: Settings) -> ScoresRead:
    """All of the score topic, by partition in offset order."""
    assert settings.topics.scores is not None
    found = ScoresRead()
    async for record in read_topic(settings.kafka, settings.topics.scores):
        found.read(settings.kafka.topic, record.key or b"", record.value, list(record.headers), record.offset)
    return found
