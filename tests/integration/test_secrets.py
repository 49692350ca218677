"""A real worker at log level debug, with secrets and customers worth hiding: nothing it says anywhere holds one."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from pydantic import SecretStr

from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.config.secrets import texts_of
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.errors import WorkerFailed
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import ensure_topics
from ebbtide.stream.outputs.dead_letter import parse_headers
from ebbtide.stream.outputs.message import Message
from tests.integration.test_http import asking, raw
from tests.support.seams.models import TINY, publish
from tests.support.servers.services import Services

PASSWORD, TOKEN = "valkey-hunter2", "http-t0ken-4711"
CUSTOMER = "c-4711-of-whom-no-log-knows"
CUSTOMERS = 30
NOW_MS = 1_767_225_600_000


def messages(topic: str) -> list[Message]:
    """Good events, every kind of bad one, and a customer forgotten: with the customer's id in all of them."""
    made = []
    for n in range(CUSTOMERS):
        who = f"{CUSTOMER}-{n}"
        key = who.encode()
        event = {"user_id": who, "type": "visit", "ts": NOW_MS + n}
        bad = [{**event, "ts": who}, {**event, "type": who}, {**event, "user_id": who * 9}, {"x": who}, who]
        made.append(Message(topic, key, json.dumps(event).encode(), (), NOW_MS))
        made += [Message(topic, key, json.dumps(each).encode(), [(who, key)], NOW_MS) for each in bad]
        made.append(Message(topic, b"other", json.dumps(event).encode(), (), NOW_MS))
        made.append(Message(topic, key, b"{" + key, (), NOW_MS))
    return [*made, Message(topic, f"{CUSTOMER}-0".encode(), None, (), NOW_MS)]


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def shows(settings: Settings, folder: Path) -> str:
    """What `ebbtide config show` prints of these settings, and what it says of them when one does not fit."""
    data, secrets = for_child(settings)
    file = folder / "shown.yaml"
    said = file.read_text() if file.exists() else ""
    for more in ({}, {"EBBTIDE_HTTP__PORT": "x"}):
        file.write_text(yaml.safe_dump(data))
        done = subprocess.run(
            [sys.executable, "-m", "ebbtide.ops.cli", "config", "show", "--config", str(file)],
            env=child_environment(**secrets, **more), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == (1 if more else 0), done.stderr
        said += done.stdout + done.stderr
    assert "redis://127.0.0.1" in said and "password: '***'" in said
    return said + file.read_text()


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_nothing_a_worker_says_holds_a_secret_or_a_customer(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(dump_spec(TINY)))
    model = publish(tmp_path / "models", spec=TINY, sizes=(8,))
    with LocalValkey(password=PASSWORD) as valkey:
        settings = Settings.model_validate(
            {
                "spec": spec, "model": model,
                "kafka": KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name),
                "redis": {"url": valkey.url, "password": PASSWORD, "prefix": f"{unique_name}:"},
                "http": {"token": TOKEN},
                "topics": {name: f"{unique_name}-{name}" for name in ("alerts", "dead_letters", "scores")},
                "logs": {"level": "debug"}, "alerts_from": "start", "dead_letter_share_max": 1.0,
            }
        )  # fmt: skip
        await ensure_topics(settings.kafka, topic_specs(settings))
        sent = messages(unique_name)
        async with KafkaSink(settings.kafka) as sink:
            await sink.send_all(sent)
        said = {"config show": shows(settings, tmp_path)}
        with WorkerProcess(settings, tmp_path) as worker:
            await asyncio.to_thread(worker.wait_ready)
            bearer = f"Authorization: Bearer {TOKEN}"
            for _ in range(300):
                status, known, _ = await raw(worker.address, asking(f"/v1/customers/{CUSTOMER}-7", bearer))
                letters = [
                    r
                    async for r in read_topic(settings.kafka, settings.topics.dead_letters)
                    if parse_headers(r.headers)
                ]
                if status == 200 and len(letters) == 7 * CUSTOMERS:
                    break
                await asyncio.sleep(0.1)
            assert status == 200 and known["state"]["activities"] == 1
            assert len(letters) == 7 * CUSTOMERS
            refusals = [
                await raw(
                    worker.address, asking(f"/v1/customers/{CUSTOMER}-7", *headers) if ask is None else ask
                )
                for headers, ask in (
                    ((), None),
                    ((f"Authorization: Bearer {TOKEN}x",), None),
                    (
                        (),
                        f"GET /v1/customers/{CUSTOMER}\x00 HTTP/1.1\r\nAuthorization: {TOKEN}\r\n\r\n".encode(),
                    ),
                    ((), f"{CUSTOMER} {TOKEN} HTTP/1.1\r\n\r\n".encode()),
                    ((), b"GET /v1/customers/" + CUSTOMER.encode() + b"\xff HTTP/1.1\r\n\r\n"),
                )
            ]
            assert [status for status, _, _ in refusals] == [401, 401, 400, 400, 400]
            said["refusals"] = str(refusals)
            # An outage, in the midst of work: the client's errors, ours, and the way back.
            valkey.kill()
            async with KafkaSink(settings.kafka) as sink:
                await sink.send_all(sent[:20])
            status, body, _ = await raw(worker.address, asking(f"/v1/customers/{CUSTOMER}-7", bearer))
            assert (status, body) == (503, {"error": "the store does not answer"})
            await asyncio.sleep(0.5)
            said["readyz away"] = str(await raw(worker.address, asking("/readyz")))
            valkey.restart()
            await asyncio.to_thread(worker.wait_ready)
            metrics = await asyncio.to_thread(page, worker.address + "/metrics")
            said |= {"/metrics": metrics, "/readyz": str(await raw(worker.address, asking("/readyz")))}
            said["command line"] = str(psutil.Process(worker.pid).cmdline())
        said |= {"log": worker.log.read_text(), "file": (tmp_path / "worker.yaml").read_text()}
        assert "partition reopens" in said["log"] and "drained" in said["log"]
        assert "ebbtide_records_total" in said["/metrics"]

        wrong = SecretStr("wrong-hunter3/@")
        broken = settings.model_copy(update={"redis": settings.redis.model_copy(update={"password": wrong})})
        with WorkerProcess(broken, tmp_path) as worker:
            with pytest.raises(WorkerFailed, match=r"EBBTIDE_REDIS__PASSWORD") as failed:
                await asyncio.to_thread(worker.wait_ready)
            said |= {
                "wrong": worker.log.read_text() + str(failed.value),
                "wrong shown": shows(broken, tmp_path),
            }

    secrets = texts_of([TOKEN, PASSWORD, wrong.get_secret_value(), "wrong-hunter3"])
    for where, text in said.items():
        assert text, where
        assert CUSTOMER not in text, where
        for secret in secrets:
            assert secret not in text, (where, secret)
