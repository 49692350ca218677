"""An alert decided again by command: by the row in the audit topic, the version it names, and the customer's log.

worker ──▶ alert ·· row_sha256 ··▶ audit topic ──row──▶ `ebbtide alert replay` ──▶ the same bits, or exit code 1
                                                   └── log refolded: the same row
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pytest
import yaml

from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import dump_spec
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.model.serving.scorer import Scorer
from ebbtide.ops.asking.replayed import makes_again
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.worker.compose import serving
from ebbtide.stream.outputs.alert import Decision
from ebbtide.stream.outputs.audit import AuditRecord, read_audit, row_sha256, rows_bytes
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.outputs.versions import read_alert
from tests.integration.test_dead_letters import RawRecord
from tests.support.seams.models import publish, sample
from tests.support.seams.scoring import LAYOUT, SPEC
from tests.support.servers.services import Services
from tests.support.workers.worlds import T0, Kind, World
from tests.unit.stream.test_alert import an_alert

DAY_MS = 86_400_000
ANN = "ann"


def visit(world: World, day: int) -> Message:
    at_ms = T0 + day * DAY_MS
    event = {"user_id": ANN, "type": "purchase" if day % 2 else "visit", "ts": at_ms, "value": 7.5}
    return Message(world.name, ANN.encode(), orjson.dumps(event), (), at_ms)


def settings_of(world: World, models: Path, folder: Path) -> Path:
    """A file of settings, as an operator has one."""
    spec, path, found = folder / "spec.yaml", folder / "settings.yaml", world.under("old")
    spec.write_text(yaml.safe_dump(dump_spec(SPEC), sort_keys=False), encoding="utf-8")
    data = {
        "spec": str(spec), "model": str(models),
        "kafka": {"url": found.kafka.url, "topic": world.name, "group": world.name},
        "redis": {"url": found.redis.url, "prefix": found.redis.prefix},
        "topics": {
            name: getattr(found.topics, name) for name in ("alerts", "dead_letters", "audit")
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


async def replayed(what: str | Path, config: Path, folder: Path) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and the report. A process of its own, as TensorFlow's settings are a process's."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ebbtide.ops.cli", "alert", "replay", str(what), "--config", str(config),
        "--json", str(report), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode(), json.loads(report.read_text()) if report.exists() else {}


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_an_alert_is_decided_again_to_the_bit(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """And one that was changed, or whose row was, is told apart; a tombstone reaches the rows, too."""
    models = tmp_path / "models"
    scorer = Scorer.load(publish(models, spec=SPEC, sizes=(8, 32), forest=True), LAYOUT, whole=False)
    served = serving(scorer, PolicySettings(enter=0.01, exit=0.0))
    world = World(stack, unique_name, audit=True)
    await world.create()
    config = settings_of(world, models, tmp_path)
    assert world.settings.topics.audit is not None
    async with world.working("old", Kind(LAYOUT, cast("Any", served))):
        await world.produce([visit(world, day) for day in range(4)])
        await world.until_done()
        alerts = [
            read_alert(record.value)
            for record in await world.read(world.settings.topics.alerts)
            if record.value
        ]
        audits = [
            read_audit(record.value)
            for record in await world.read(world.settings.topics.audit)
            if record.value
        ]
        assert alerts and [each.alert_id for each in alerts] == [each.alert_id for each in audits]
        alert, audit = alerts[0], audits[0]
        assert alert.reasons and alert.row_sha256 is not None

        code, said, report = await replayed(alert.alert_id, config, tmp_path)
        assert code == 0, said
        assert (report["score"], report["reasons"], report["refolded"]) == (
            "the same bits",
            "the same bits",
            True,
        )
        assert report["same_row"] and "as the alert says" in said

        file = tmp_path / "alert.json"
        other = alert.model_copy(update={"logit": (alert.logit or 0.0) + 0.5})
        file.write_text(f"{other.model_dump_json()}\n{audit.model_dump_json()}\n", encoding="utf-8")
        code, said, report = await replayed(file, config, tmp_path)
        assert code == 1 and report["score"] == "different" and "NOT as the alert says" in said

        changed = audit.rows(LAYOUT)
        changed["activity_count"] += 1
        forged = audit.model_copy(update={"row": _encoded(changed[0])})
        file.write_text(f"{alert.model_dump_json()}\n{forged.model_dump_json()}\n", encoding="utf-8")
        code, said, report = await replayed(file, config, tmp_path)
        assert code == 1 and not report["same_row"] and report["refolded"] is False

        await world.produce([Message(world.name, ANN.encode(), None)])
        await world.until_done()
        assert [record.value for record in await world.read(world.settings.topics.audit)][-1] is None
    code, said, _ = await replayed(alert.alert_id, config, tmp_path)
    assert code == 1 and "its customer was forgotten" in said


def _encoded(row: np.void) -> str:
    import base64

    return base64.b64encode(rows_bytes(row.reshape(1), LAYOUT)[0]).decode()


def test_a_row_reads_back_from_its_audit_record() -> None:
    """Field by field; the hash is of the row and its time."""
    data = sample(5, spec=SPEC, seed=4)
    layout = Layout(SPEC)
    for row, as_of in zip(data.rows, data.as_of.tolist(), strict=True):
        (raw,) = rows_bytes(row.reshape(1), layout)
        record = AuditRecord(
            alert_id="0" * 32, customer="ann", as_of=as_of, p=0.5, model="shop", model_version=1, layout=layout.id,
            platform="", row=_encoded(row),
        )  # fmt: skip
        (found,) = record.rows(layout)
        for name in layout.model_fields:
            assert found[name].tobytes() == row[name].tobytes(), name
        assert row_sha256(raw, as_of) != row_sha256(raw, as_of + 1)
        with pytest.raises(ValueError, match="bytes"):
            record.model_copy(update={"row": record.row[:-8]}).rows(layout)


def test_a_log_is_refolded_under_the_workers_bound() -> None:
    """What workers made a dead letter of, for its size, is in no row; and what they folded is in it."""
    large = {"user_id": ANN, "type": "visit", "ts": T0 + DAY_MS, "note": "x" * 100_000}
    small = {"user_id": ANN, "type": "visit", "ts": T0}
    records = [
        RawRecord(n, T0 + n * DAY_MS, ANN.encode(), orjson.dumps(event))
        for n, event in enumerate((small, large))
    ]
    wide = ParseLimits(value_bytes_max=1 << 20)
    events = Parser(SPEC, wide).parse(records).events
    folder = Folder(LAYOUT)
    _, points = folder.fold(LAYOUT.empty(1), events)
    last = points.take(np.array([len(points) - 1]))
    as_of = int(last.as_of[0])
    decision = Decision(as_of=instant(as_of), cause="event", topic="clicks", partition=0, offset=1)
    alert = an_alert().model_copy(update={"customer": ANN, "decision": decision})
    audit = AuditRecord(
        alert_id=alert.alert_id, customer=ANN, as_of=as_of, p=0.5, model="shop", model_version=1,
        layout=LAYOUT.id, platform="", row=_encoded(last.rows[0]),
    )  # fmt: skip
    assert makes_again(records, alert, audit, LAYOUT, wide)
    assert not makes_again(records, alert, audit, LAYOUT, ParseLimits())
