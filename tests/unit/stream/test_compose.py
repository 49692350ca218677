"""Alerts in words: which of them the model is asked about, and what an alert says when it has no answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import SILENCE, Folder
from ebbtide.featurestore.record.layout import Rows
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.decision.policy import Asked
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.compose import Composer
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.turn.work import Origin, Piece, Work
from tests.support.seams.scoring import LAYOUT, SPEC, FussyModel
from tests.support.seams.streams import LogRecord
from tests.support.seams.turns import from_the_beginning

T0, HOUR_MS, DAY_MS, CUSTOMERS = 1_700_000_000_000, 3_600_000, 86_400_000, 5


def said(offset: int, customer: int, kind: str, ts: int) -> LogRecord:
    event = {"user_id": f"customer-{customer}", "type": kind, "ts": ts}
    return LogRecord(offset, ts, b"customer-%d" % customer, orjson.dumps(event))


def silences() -> list[LogRecord]:
    """Customer k visits k + 1 times and then no more, which shows when they are sent a mail."""
    visits = [(k, "visit", T0 + n * HOUR_MS) for n in range(CUSTOMERS) for k in range(n, CUSTOMERS)]
    mails = [(k, "mail", T0 + 20 * DAY_MS) for k in range(CUSTOMERS)]
    return [said(offset, *event) for offset, event in enumerate(visits + mails)]


class Desk:
    """Decides and composes, batch by batch: an episode opens at the first silence, whatever the model would say."""

    def __init__(self, model: FussyModel, heard: Telemetry | None = None) -> None:
        self.model = model
        heard = heard or Telemetry()
        self.batcher = Batcher(lambda: model, SystemClock(), heard, deadline_s=60.0, linger_s=0.0)
        self._rows: dict[str, Rows] = {}

    async def alerts(self, records: Sequence[LogRecord]) -> list[Alert]:
        opened = from_the_beginning(LAYOUT.id, 0, 1)
        batch = FetchedBatch("clicks", 0, 0, records[0].offset, records[-1].offset + 1, records)
        work = Work.of([Piece(opened, batch)], Parser(SPEC))
        events = work.events
        before = np.concatenate([self._rows.get(name, LAYOUT.empty(1)) for name in events.customers])
        after, points = Folder(LAYOUT).fold(before, events)
        scored = Scored(np.where(points.cause == SILENCE, 0.9, 0.35).astype(np.float32), self.model)
        asked = Asked.of_one(points, scored.p, events.customers)
        transitions = self.model.policy.decide(asked, before, after).transitions
        origin = Origin.of(work, points)
        composer = Composer("clicks", LAYOUT, self.batcher)
        entries = (await composer.compose(work, transitions, points, origin, scored)).alerts.get(0, [])
        self._rows = {name: after[i : i + 1] for i, name in enumerate(events.customers)}
        return [Alert.model_validate_json(entry.value) for entry in entries]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk(FussyModel(sizes=(8,)))
    serving = asyncio.create_task(desk.batcher.run())
    yield desk
    serving.cancel()
    desk.batcher.close()


@pytest.mark.parametrize("visits", [1, 3])
@pytest.mark.parametrize("kind", ["unexplained", "nans"])
async def test_an_alert_without_reasons_goes_out(desk: Desk, visits: int, kind: str) -> None:
    """Rows of so many visits cannot be explained: their alert lacks its reasons, and no other alert lacks anything."""
    whole = await desk.alerts(silences())
    assert [alert.state for alert in whole] == ["opened"] * CUSTOMERS
    assert all(alert.reasons for alert in whole)
    setattr(desk.model, kind, [visits])
    desk._rows.clear()
    lacking = f"customer-{visits - 1}"
    assert await desk.alerts(silences()) == [
        alert.model_copy(update={"reasons": ()}) if alert.customer == lacking else alert for alert in whole
    ]


class Counting(Telemetry):
    """How many rows were explained, inexactly, not at all."""

    def __init__(self) -> None:
        self.counts = np.zeros(3, np.int64)

    def explained(self, rows: int, inexact: int, failed: int) -> None:
        self.counts += (rows, inexact, failed)


class Off(FussyModel):
    """The parts of rows of two visits leave a tenth of a logit unexplained."""

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        why = super().explain(rows, as_of)
        return why._replace(
            logit=why.logit + np.where(rows["activity_count"] == 2, 0.1, 0.0).astype(np.float32)
        )


async def test_what_does_not_add_up_is_not_sent_but_counted() -> None:
    counting = Counting()
    desk = Desk(Off(sizes=(8,)), counting)
    serving = asyncio.create_task(desk.batcher.run())
    alerts = await desk.alerts(silences())
    serving.cancel()
    desk.batcher.close()
    assert {alert.customer: bool(alert.reasons) for alert in alerts} == {
        f"customer-{k}": k != 1 for k in range(CUSTOMERS)
    }
    assert counting.counts.tolist() == [CUSTOMERS, 1, 0]


async def test_who_left_needs_no_reasons(desk: Desk) -> None:
    """So an outage of the model does not hold that alert up; it does hold up one that it should explain."""
    await desk.alerts(silences())
    desk.model.broken = True
    (alert,) = await desk.alerts([said(100, 2, "goodbye", T0 + 21 * DAY_MS)])
    assert (alert.cause, alert.reasons, alert.probability) == ("terminal", (), None)
    desk._rows.clear()
    with pytest.raises(ScorerUnavailable, match="broken on purpose"):
        await desk.alerts(silences())


class Foresighted(FussyModel):
    """Knows that nothing comes at a rate of a tenth a day; NaN where it cannot explain."""

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        found = super().explain(rows, as_of)
        days = np.array(SPEC.horizons_ms) / DAY_MS
        survival = np.repeat(np.exp(-days / 10)[None, :], len(rows), axis=0).astype(np.float32)
        survival[np.isnan(found.logit)] = np.nan
        return found._replace(survival=survival)


async def test_an_alert_says_when_if_the_model_knows() -> None:
    """Of a row that it cannot explain the alert says nothing of the kind, and goes out."""
    desk = Desk(Foresighted(nans=[3], sizes=(8,)))
    serving = asyncio.create_task(desk.batcher.run())
    found = {alert.customer: alert for alert in await desk.alerts(silences())}
    serving.cancel()
    desk.batcher.close()
    assert found["customer-2"].survival is None and found["customer-2"].activity_in_days is None
    alert = found["customer-0"]
    assert alert.survival is not None and alert.activity_in_days is not None
    assert [at.horizon_days for at in alert.survival] == [h / DAY_MS for h in SPEC.horizons_ms]
    assert [at.probability for at in alert.survival] == pytest.approx(
        [np.exp(-h / DAY_MS / 10) for h in SPEC.horizons_ms], abs=1e-6
    )
    assert alert.activity_in_days.p50 == pytest.approx(10 * np.log(2), abs=1e-3)
    assert alert.activity_in_days.p90 == pytest.approx(10 * np.log(10), abs=1e-3)
    assert alert.lost_at is not None
    assert alert.lost_at.timestamp() * 1000 == T0 + SPEC.horizon_ms
