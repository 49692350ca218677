"""What should be there: the final log through parse, fold, score and decide, offline, in offset order, once.

    log (read_committed) ─▶ parse ─▶ fold ─▶ score, by the version that says so ─▶ decide ─▶ records, alerts, letters
                                                     ▲
                             score topic: which version scored which point

It shares with the workers the parser, the fold and the models' files, and nothing of what this suite puts to the test:
no transport, no Redis, no outbox, no batches of theirs, no resuming; policy and alerts are the oracle's, written apart
(`tests/support/oracle/decisions.py`). Whether the parser is right about what is poison is for the producers to say
(`verdict.py`).

Which version decides is nobody's promise. A point is decided by the version that says it scored it. Where a state was
lost it is made again without a word, by whoever serves then; so from some point on a customer's story may be another:

    offset  ─────low───────────────────────high─────
    said    ──v1──────────v1──────────v2────v2──────     by those that said they scored it
                     ╰──v2──────────v2──────╯            … or made again, from anywhere on, to the end of the piece

So a customer has several stories there, nearly always one.

Silences are taken by timers, or by the next event where that was first: the same points, so the log tells them. Two
things it does not tell. How far timers came in the end is read from the checkpoints, and held against the time. And a
tombstone forgets who was silent: what was taken before it is what the score topic says; whether that was told, or the
worker died before, nobody knows, so such alerts may be there and need not. Invariants: the end depends on the log and
on who may have decided; one alert follows from one version, its p, its thresholds and its reasons.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder, Points
from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Layout, Rows
from ebbtide.featurestore.record.reasons import Reasons
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.model.explaining.explained import GAP_MAX
from ebbtide.model.serving.folder import versions
from ebbtide.model.serving.runtime import configure
from ebbtide.model.serving.scorer import Programs, Scorer
from ebbtide.ops.config.settings import Settings
from ebbtide.stream.batch import Record
from ebbtide.stream.kafka.reader import read_topic
from tests.chaos.consumer import Belief
from tests.chaos.feed import checksum
from tests.chaos.losses import FellBack
from tests.chaos.scores import PointKey, ScoresRead
from tests.support.oracle.decisions import (
    CAUSE_NAMES,
    Decided,
    Explained,
    ModelFacts,
    Origin,
    Rules,
    Story,
    alert_of,
    id_of,
    is_held_out,
    next_story,
)
from tests.support.oracle.oracle import EVENT, EXPIRED, RESET, SILENCE

CHUNK = 2_000
STORIES_MAX = 256
"""More stories of one customer at a time, and nothing is proven of their episode: they are counted, and let go."""
NEVER = 2**62
AS_SAID, MADE_AGAIN = 0, -1
"""Of a path that follows whoever said that they scored a point: not made again yet, or as far as it had been."""


class Path(NamedTuple):
    """One way in which a customer may have been decided so far. `by`: the version that makes the state again here,
    AS_SAID or MADE_AGAIN."""

    story: Story
    by: int


class Version(NamedTuple):
    """A published version: how it scores, when episodes open and close under it, what alerts say of it."""

    scorer: Scorer
    rules: Rules
    facts: ModelFacts


class Foreseen(NamedTuple):
    """An alert. `by`: what it may say, by the version that it names; of one, if nothing was made again. `certain`: it
    has to be there."""

    customer: str
    by: dict[int, list[dict[str, Any]]]
    certain: bool


class Shown(NamedTuple):
    """The event that brought a point about or, of a silence, showed it at the latest: its offset, its time (ms UTC),
    whether it is a null."""

    offset: int
    time: int = 0
    tombstone: bool = False


@dataclass
class Expected:
    """records: (partition, customer) -> bytes without the episode; stories: the same -> what the episode may be; due:
    the same -> ms; alerts: id -> what it says; letters: (partition, offset) -> reason and checksum; tombstones:
    customer -> how often forgotten; sums: offset -> checksum of each record by partition; memories: the log's time in
    pieces as long as the spec's memory, those of them in which a record came; beliefs: what who obeys the contract
    knows of each customer in the end; latest: each customer's last score; timed: points that no event showed; scores_*:
    what is wrong with the scores; escalations: that somebody is told of; untold: what is decided about who is held out;
    ambiguous: customers of whom two versions decided otherwise, since their last tombstone and ever; lost_track: those
    of whom there were too many stories."""

    records: dict[tuple[int, str], bytes] = field(default_factory=dict)
    stories: dict[tuple[int, str], set[Story]] = field(default_factory=dict)
    due: dict[tuple[int, str], int] = field(default_factory=dict)
    alerts: dict[bytes, Foreseen] = field(default_factory=dict)
    letters: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    tombstones: Counter[bytes] = field(default_factory=Counter)
    sums: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    memories: set[int] = field(default_factory=set)
    beliefs: dict[str, Belief] = field(default_factory=dict)
    latest: dict[str, PointKey] = field(default_factory=dict)
    scores_missing: list[PointKey] = field(default_factory=list)
    scores_wrong: list[tuple[PointKey, int, float]] = field(default_factory=list)
    scores_extra: list[PointKey] = field(default_factory=list)
    points: int = 0
    escalations: int = 0
    untold: int = 0
    timed: int = 0
    lost_track: set[str] = field(default_factory=set)
    ambiguous: set[str] = field(default_factory=set)
    ever_ambiguous: set[str] = field(default_factory=set)

    @property
    def log_records(self) -> int:
        return sum(map(len, self.sums.values()))


class Replay:
    """Reads a topic from end to end. `settings` are the workers', but for the way to Kafka; `scores` is what their
    score topic says, `remade` what may have been decided again, `timers` how far each partition's came."""

    def __init__(
        self,
        settings: Settings,
        scores: ScoresRead,
        remade: Iterable[FellBack],
        timers: Mapping[int, TimerCursor],
    ) -> None:
        configure()
        self._settings, self._scores, self._remade = settings, scores, list(remade)
        self._timers = timers
        self._layout = Layout(load_spec(settings.spec))
        self._folder = Folder(self._layout)
        self._parser = Parser(self._layout.spec, ParseLimits(value_bytes_max=settings.record_bytes_max))
        self._versions = load_versions(settings, self._layout)
        listed = features(self._layout.spec)
        self._names, self._groups = [f.name for f in listed], [f.group for f in listed]
        self._words = Reasons(self._layout.spec).words
        self._rows: dict[int, dict[str, np.void]] = defaultdict(dict)
        self.paths: dict[tuple[int, str], set[Path]] = {}
        self.end = Expected()

    async def run(self) -> Expected:
        topic = self._settings.kafka.topic
        waiting: dict[int, list[Record]] = defaultdict(list)
        async for record in read_topic(self._settings.kafka, topic):
            mine = waiting[record.partition]
            mine.append(record)
            if len(mine) == CHUNK:
                self._take(record.partition, waiting.pop(record.partition))
        for partition, records in waiting.items():
            self._take(partition, records)
        for partition, rows in self._rows.items():
            ms, last = self._timers.get(partition, (0, ""))
            customers = list(rows)
            until = [ms + 1 if last and customer <= last else ms for customer in customers]
            self._elapse(partition, customers, until, NEVER)
            for customer, row in rows.items():
                self.end.records[partition, customer] = row.tobytes()
                due = self._folder.due(np.array([row], self._layout.dtype))
                self.end.due[partition, customer] = int(due[0])
        self.end.scores_extra = sorted(self._scores.said.keys())
        self.end.stories = {place: {path.story for path in paths} for place, paths in self.paths.items()}
        return self.end

    def _take(self, partition: int, records: list[Record]) -> None:
        sums = self.end.sums[partition]
        for record in records:
            sums[record.offset] = checksum(record.key, record.value, record.headers)
        self.end.memories |= {record.timestamp // self._layout.spec.memory_ms for record in records}
        nulls = [i for i, record in enumerate(records) if record.value is None and i]
        for low, high in zip([0, *nulls], [*nulls, len(records)], strict=True):
            if records[low].value is None:
                self._silences_before(partition, records[low])
            self._fold(partition, records[low:high])

    def _fold(self, partition: int, records: list[Record]) -> None:
        """Records of which the first one alone may be a null."""
        parsed = self._parser.parse(records)
        for bad in parsed.rejected:
            record = records[bad.index]
            said = self.end.sums[partition][record.offset]
            self.end.letters[partition, record.offset] = (str(bad.reason), said)
        events = parsed.events
        after, points = self._folder.fold(self._before(partition, events.customers), events)
        for e in np.flatnonzero(events.kind == TOMBSTONE):
            self.end.tombstones[events.customers[events.customer[e]].encode()] += 1
        columns = (events.position, events.time, events.kind == TOMBSTONE)
        shown = map(Shown, *(column[points.event].tolist() for column in columns))
        _Decisions(self, partition, events.customers, points, list(shown)).run()
        self._keep(partition, events.customers, after)

    def _silences_before(self, partition: int, null: Record) -> None:
        """Those that the score topic says were taken of a customer before a null of theirs."""
        customer = (null.key or b"").decode(errors="replace")
        if customer not in self._rows[partition]:
            return
        row = self._before(partition, [customer])
        silences = self._folder.elapse(row, NEVER)[1]
        offset = int(row["last_seen_offset"][0])
        taken = [
            as_of
            for as_of, cause in zip(silences.as_of.tolist(), silences.cause.tolist(), strict=True)
            if PointKey(partition, offset, as_of, CAUSE_NAMES[cause]) in self._scores.said
        ]
        if taken:
            self._elapse(partition, [customer], [max(taken) + 1], null.offset, told=False)

    def _elapse(
        self, partition: int, customers: Sequence[str], until: list[int], at: int, *, told: bool = True
    ) -> None:
        """Let time pass for those who are due, each until then. `at`: the offset that was not folded yet. `told`:
        whoever took these points lived to tell of them. Nobody takes who is not due: silences that a late activity left
        behind what is known already are no points, and such a record stays as it was folded."""
        rows = self._before(partition, customers)
        waiting = np.flatnonzero((self._folder.due(rows) < np.array(until)) & (rows["event_time"] != 0))
        customers, until = [customers[int(i)] for i in waiting], [until[int(i)] for i in waiting]
        rows = rows[waiting]
        after, points = self._folder.elapse(rows, np.array(until, np.int64))
        self.end.timed += len(points)
        _Decisions(self, partition, customers, points, [Shown(at)] * len(points), told=told).run()
        self._keep(partition, customers, after)

    def _before(self, partition: int, customers: Sequence[str]) -> Rows:
        rows, before = self._rows[partition], self._layout.empty(len(customers))
        for i, customer in enumerate(customers):
            if customer in rows:
                before[i] = rows[customer]
        return before

    def _keep(self, partition: int, customers: Sequence[str], after: Rows) -> None:
        rows = self._rows[partition]
        for i, customer in enumerate(customers):
            if after["event_time"][i] != 0:
                rows[customer] = after[i].copy()
            else:
                rows.pop(customer, None)


class _Decisions:
    """The points of one chunk, each with what has `shown` it. `told`: whoever took them lived to tell of them."""

    def __init__(
        self,
        replay: Replay,
        partition: int,
        customers: Sequence[str],
        points: Points,
        shown: list[Shown],
        *,
        told: bool = True,
    ) -> None:
        self._replay, self._partition, self._points, self._told = replay, partition, points, told
        self._customers, self._shown = customers, shown
        self._end, self._versions = replay.end, replay._versions
        self._of_time = points.of_time.tolist()
        of = np.where(points.of_time, points.rows["last_seen_offset"], [each.offset for each in shown])
        self._offsets = of.tolist()
        self._as_of, self._cause = points.as_of.tolist(), points.cause.tolist()
        self._said: list[tuple[int, str, Decided, int, float, bool]] = []

    def run(self) -> None:
        m_points = range(len(self._points))
        said = [self._said_by(m) if self._cause[m] <= SILENCE else frozenset() for m in m_points]
        again = [self._made_again_by(m) for m in m_points]
        p = self._scores_of(
            [those | more if those else those for those, more in zip(said, again, strict=True)]
        )
        for m in m_points:
            self._step(m, said[m], again[m], p)
        self._compose()

    def _said_by(self, m: int) -> frozenset[int]:
        """The versions that said they scored a point: one or more of those that there are, or of nobody's any."""
        self._end.points += 1
        point = self._point(m)
        said = {score.version for score in self._replay._scores.said.get(point, [])}
        if not said:
            self._end.scores_missing.append(point)
        return frozenset(said & self._versions.keys() or self._versions.keys())

    def _made_again_by(self, m: int) -> frozenset[int]:
        """Whoever may have decided it again. A silence was taken anywhere between the customer's last activity and what
        showed it."""
        last = self._shown[m].offset
        first = self._offsets[m] if self._of_time[m] else last
        pieces = [
            piece.versions
            for piece in self._replay._remade
            if piece.partition == self._partition and piece.low <= last and first < piece.high
        ]
        return frozenset[int]().union(*pieces) & self._versions.keys()

    def _point(self, m: int) -> PointKey:
        return PointKey(self._partition, self._offsets[m], self._as_of[m], CAUSE_NAMES[self._cause[m]])

    def _scores_of(self, candidates: list[frozenset[int]]) -> dict[tuple[int, int], float]:
        """p by (point, version); what was said of it is held against that."""
        p: dict[tuple[int, int], float] = {}
        for number, version in self._versions.items():
            chosen = [m for m, those in enumerate(candidates) if number in those]
            if chosen:
                scored = version.scorer.score(self._points.rows[chosen], self._points.as_of[chosen])
                p |= {(m, number): float(one) for m, one in zip(chosen, scored, strict=True)}
        for m, those in enumerate(candidates):
            if not those:
                continue
            point = self._point(m)
            customer = self._customers[self._points.customer[m]]
            for score in self._replay._scores.said.pop(point, []):
                if p.get((m, score.version)) != score.p or score.customer != customer:
                    self._end.scores_wrong.append((point, score.version, score.p))
        return p

    def _step(
        self, m: int, said: frozenset[int], again: frozenset[int], p: dict[tuple[int, int], float]
    ) -> None:
        end, cause, as_of = self._end, self._cause[m], self._as_of[m]
        customer = self._customers[self._points.customer[m]]
        place = self._partition, customer
        if cause == RESET:
            self._replay.paths.pop(place, None)
            if self._shown[m].tombstone:
                end.beliefs.pop(customer, None)
                end.latest.pop(customer, None)
                end.ambiguous.discard(customer)
            return
        if said:
            end.latest[customer] = self._point(m)
        happened = self._shown[m].time if cause == EVENT else None
        policy = self._replay._settings.policy
        told = not is_held_out(customer, policy.holdout, policy.holdout_salt)
        # Who left, returned or expired was not scored: any version says the same of it.
        said = said or frozenset(sorted(self._versions)[:1])
        outcomes = [
            (
                *next_story(
                    path.story,
                    as_of,
                    cause,
                    p.get((m, number), 0.0),
                    self._versions[number].rules,
                    happened=happened,
                    told=told,
                ),
                by,
                number,
            )
            for path in self._replay.paths.get(place, {Path(Story(), AS_SAID)})
            for by, number in _ways(path.by, said, again)
        ]
        paths = {Path(story, by) for story, _, by, _ in outcomes}
        if len(paths) > STORIES_MAX:
            end.lost_track.add(customer)
            paths = set(list(paths)[:1])
        self._replay.paths[place] = paths
        if cause == EXPIRED:
            self._replay.paths.pop(place)
        if len({(replace(story, score=0.0, scored_at=0), decided) for story, decided, _, _ in outcomes}) > 1:
            end.ambiguous.add(customer)
            end.ever_ambiguous.add(customer)
        certain = self._told and len({decided for _, decided, _, _ in outcomes}) == 1
        for decided, number in dict.fromkeys((decided, number) for _, decided, _, number in outcomes):
            if decided is not None and not decided.told:
                end.untold += 1
            elif decided is not None:
                end.escalations += decided.state == "escalated"
                self._said.append((m, customer, decided, number, p.get((m, number), 0.0), certain))
                end.beliefs[customer] = Belief(decided.state in ("opened", "escalated"), decided.sequence)

    def _compose(self) -> None:
        """What was said, by every version that may have said it."""
        topic, target = self._replay._settings.kafka.topic, self._replay._layout.spec.target_names[0]
        asked: dict[int, list[int]] = defaultdict(list)
        for m, _, _, number, _, _ in self._said:
            if self._cause[m] <= SILENCE:
                asked[number].append(m)
        why = {number: self._explained(number, chosen) for number, chosen in asked.items()}
        for m, customer, decided, number, p, certain in self._said:
            identity = id_of(topic, customer, decided, target).encode()
            origin = Origin(topic, self._partition, self._offsets[m])
            left = self._cause[m] > SILENCE
            last = self._last_event(m)
            before = self._end.alerts.get(identity)
            by = before.by if before else {}
            row = self._points.rows[m]
            given = b"".join(row[name].tobytes() for name in self._replay._layout.model_fields)
            for each in self._versions if left else (number,):
                explained = None if left else why[number].get(m)
                facts = self._versions[each].facts
                alert = alert_of(decided, customer, self._cause[m], p, origin, facts, explained, last, given)
                by.setdefault(each, []).append(alert)
            self._end.alerts[identity] = Foreseen(customer, by, certain)

    def _last_event(self, m: int) -> int:
        """Time of the target's last event before a point, whose absence is churn."""
        spec, row = self._replay._layout.spec, self._points.rows[m]
        if not spec.churn_is_absence:
            return 0
        return int(row["target_last"][0] if spec.arms_apart else row["last_seen"])

    def _explained(self, number: int, chosen: list[int]) -> dict[int, Explained]:
        points, replay = self._points, self._replay
        why = self._versions[number].scorer.explain(points.rows[chosen], points.as_of[chosen])
        return {
            m: Explained(
                replay._names, replay._groups, partial(replay._words, values=why.values[n]), why.values[n].tolist(),
                why.contributions[n].tolist(), float(why.sequence[n]),
            )
            for n, m in enumerate(chosen) if abs(why.gap[n]) <= GAP_MAX
        }  # fmt: skip


def _ways(by: int, said: frozenset[int], again: frozenset[int]) -> list[tuple[int, int]]:
    """How a path may go on at a point: (what it follows from here on, the version that decides). Whoever makes a state
    again hands over to newer versions only, then to those that say that they score; at the end of the piece the path is
    one like any other."""
    if not again:
        return [(AS_SAID, number) for number in said]
    follows = [(by if by == AS_SAID else MADE_AGAIN, number) for number in said]
    return follows if by == MADE_AGAIN else follows + [(number, number) for number in again if number >= by]


def load_versions(settings: Settings, layout: Layout) -> dict[int, Version]:
    """Every version in the models' folder. Those that share their files share what was compiled, too."""
    found: dict[int, Version] = {}
    scorers: dict[tuple[object, ...], Scorer] = {}
    programs: Programs = {}
    for number in versions(settings.model):
        scorer = Scorer.load(settings.model / str(number), layout, programs=programs, whole=False)
        manifest = scorer.manifest
        files = tuple(sorted(manifest.files.items())), manifest.sizes
        scorer = scorers.setdefault(files, scorer)
        policy = settings.policy
        enter = policy.enter if policy.enter is not None else manifest.enter
        rules = Rules(
            enter,
            policy.exit if policy.exit is not None else manifest.exit,
            policy.dwell_ms,
            policy.cooldown_ms,
            ((policy.band, enter), *sorted(policy.bands.items(), key=lambda band: band[1])),
        )
        facts = ModelFacts(
            manifest.name, number, rules, layout.id, layout.spec.horizon_ms, layout.spec.target_names[0]
        )
        found[number] = Version(scorer, rules, facts)
    return found


def without_episode(rows: Rows) -> Rows:
    """The records as the fold alone makes them."""
    plain = rows.copy()
    for name in EPISODE_FIELDS:
        plain[name] = 0
    return plain
