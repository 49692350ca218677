"""What the page shows, kept while the worker works: rates of the last minutes, alerts as they were sent, who is at
risk.

Of this worker and since its start: another one has its own customers, and says so on its own page. Bounded everywhere;
`turn` and `sent` are called on the data path and cost microseconds.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from ebbtide.stream.clock import Clock
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.telemetry import TurnDone

SECONDS_KEPT = 120
ALERTS_KEPT = 200
AT_RISK_MAX, AT_RISK_SHOWN = 5_000, 12
LATENCIES_KEPT = 2_000
BINS = 20
FADES = 0.99
"""Of the score distribution, a second: it tells of the last few minutes."""


class Live:
    """`turn` and `sent` are told; `now` and `alerts_after` are asked. topic: of the alerts."""

    def __init__(self, topic: str, clock: Clock, about: Callable[[], dict[str, Any]]) -> None:
        self._topic, self._clock, self._about = topic, clock, about
        self._seconds: deque[tuple[int, list[float]]] = deque(maxlen=SECONDS_KEPT)
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES_KEPT)
        self._bins, self._faded_s = np.zeros(BINS), clock.monotonic_s()
        self._numbers = itertools.count(1)
        self._alerts: deque[tuple[int, dict[str, Any]]] = deque(maxlen=ALERTS_KEPT)
        # By customer, then target: who buys no more may still be in an open episode of coming no more.
        self._at_risk: dict[str, dict[str, dict[str, Any]]] = {}

    def turn(self, turn: TurnDone) -> None:
        """A turn was applied."""
        counts = self._second()
        counts[0] += turn.records
        counts[1] += len(turn.sent)
        now_s = self._clock.monotonic_s()
        self._latencies.extend((now_s, a.record_age_s) for a in turn.sent if a.record_age_s is not None)
        if turn.judged is not None and len(turn.judged.p):
            self._fade(now_s)
            self._bins += np.histogram(turn.judged.p, BINS, (0.0, 1.0))[0]

    def sent(self, messages: Sequence[Message]) -> None:
        """Kafka has acknowledged these."""
        for message in messages:
            if message.topic == self._topic:
                self._alert(message)

    def _alert(self, message: Message) -> None:
        if message.value is None:  # whoever is to be forgotten is forgotten here, too
            who = (message.key or b"").decode()
            self._at_risk.pop(who, None)
            kept = [each for each in self._alerts if each[1]["customer"] != who]
            self._alerts.clear()
            self._alerts.extend(kept)
            return
        alert: dict[str, Any] = orjson.loads(message.value)
        self._alerts.append((next(self._numbers), alert))
        episodes = self._at_risk.pop(alert["customer"], {})
        episodes.pop(alert["target"], None)
        if alert["state"] in ("opened", "escalated"):
            episodes[alert["target"]] = alert
        if episodes:
            self._at_risk[alert["customer"]] = episodes
            if len(self._at_risk) > AT_RISK_MAX:
                del self._at_risk[next(iter(self._at_risk))]

    def now(self) -> dict[str, Any]:
        """What changes from second to second, as JSON takes it."""
        now_s = self._clock.monotonic_s()
        self._fade(now_s)
        self._second()
        recent = sorted(age for at_s, age in self._latencies if at_s > now_s - 60)
        loudest = (max(episodes.values(), key=_p) for episodes in self._at_risk.values())
        worst = sorted(loudest, key=_p, reverse=True)
        series = [counts for _, counts in self._seconds]
        return {
            "records": [counts[0] for counts in series],
            "alerts": [counts[1] for counts in series],
            "latency_ms": {"p50": _rank(recent, 0.5), "p99": _rank(recent, 0.99), "n": len(recent)},
            "scores": [round(float(n), 1) for n in self._bins],
            "at_risk": len(self._at_risk),
            "worst": [
                {"customer": a["customer"], "probability": a["probability"], "words": _words(a)}
                for a in worst[:AT_RISK_SHOWN]
            ],
            **self._about(),
        }

    def alerts_after(self, number: int) -> list[tuple[int, dict[str, Any]]]:
        """The alerts that are kept and came after the one of this number, oldest first; 0: all."""
        return [(n, alert) for n, alert in self._alerts if n > number]

    def _second(self) -> list[float]:
        """The counts of this second; seconds without any are there, too."""
        second = int(self._clock.monotonic_s())
        last = self._seconds[-1][0] if self._seconds else second - 1
        for missing in range(max(last, second - SECONDS_KEPT) + 1, second + 1):
            self._seconds.append((missing, [0.0, 0.0]))
        return self._seconds[-1][1]

    def _fade(self, now_s: float) -> None:
        self._bins *= FADES ** (now_s - self._faded_s)
        self._faded_s = now_s


def _rank(ordered: Sequence[float], share: float) -> float | None:
    return round(1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 1) if ordered else None


def _p(alert: dict[str, Any]) -> float:
    return float(alert["probability"] or 0.0)


def _words(alert: dict[str, Any]) -> str:
    return "; ".join(reason["words"] for reason in alert["reasons"])
