"""Workers join a real group, leave it, die, are replaced and sleep: what is theirs afterwards."""

import asyncio
import contextlib
import random
import signal
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import NewPartitions
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError
from redis.asyncio import Redis

from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.patience import PATIENCE_S
from tests.support.receiver import MemoryChain, Receiver, RedisChain, until
from tests.support.servers.services import Services
from tests.support.transport import Feed, Join, check, folded, settings_for

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).resolve().parents[2]


PUSHED = set[asyncio.Future[None]]()  # a task that nobody holds may vanish


async def push_error(receiver: Receiver, error: KafkaError) -> None:
    """What aiokafka's coordinator does with an answer it did not expect: it keeps the error for the next to ask."""
    thread = receiver.app.source._thread

    async def push() -> None:
        coordinator = thread._ensure_consumer()._coordinator
        PUSHED.add(asyncio.ensure_future(coordinator._push_error_to_user(error)))

    await thread.call_thread(push)


async def test_an_unexpected_answer_of_the_coordinator_is_survived(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """The worker joins the group again. Left alone, aiokafka would be a silent member that nobody misses."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    receiver = await join(settings, chain)
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await push_error(receiver, KafkaError("unexpected"))
    await until(lambda: receiver.seen["assigned"] > 1, "joined again")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)


async def test_a_refusal_of_the_coordinator_ends_the_worker(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """No right to the group will not pass by asking again."""
    receiver = await join(settings_for(stack, unique_name), MemoryChain())
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await push_error(receiver, GroupAuthorizationFailedError(unique_name))
    with pytest.raises(BrokerMisconfigured, match=r"forbids our membership.*READ on group"):
        await asyncio.wait_for(receiver.app.failed(), PATIENCE_S)


class Workers:
    """Worker processes, to be killed, stopped past their session and woken."""

    def __init__(self, settings: KafkaSettings, redis_url: str) -> None:
        self._settings, self._redis_url = settings, redis_url
        self.running: list[asyncio.subprocess.Process] = []

    async def add(self) -> asyncio.subprocess.Process:
        arguments = [self._settings.model_dump_json(), self._redis_url, "--work-s", "0.002"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.receiver",
            *arguments,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        self.running.append(process)
        return process

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        process.kill()
        await process.wait()
        self.running.remove(process)

    async def stop(self, process: asyncio.subprocess.Process) -> int:
        """SIGTERM, once it has come so far as to handle it. Returns its exit code."""
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"started\n"
        process.terminate()
        self.running.remove(process)
        return await asyncio.wait_for(process.wait(), PATIENCE_S)


@pytest.mark.slow
async def test_workers_come_and_die_while_events_flow(stack: Services, unique_name: str, feed: Feed) -> None:
    """Kills, joins, leaves and a worker that sleeps past its session and wakes as a second owner."""
    settings = settings_for(stack, unique_name, fetch_records_max=200)
    redis = Redis.from_url(stack.redis_url)
    chain = RedisChain(redis, unique_name)
    workers, over, rng = Workers(settings, stack.redis_url), asyncio.Event(), random.Random(7)
    streaming = asyncio.create_task(feed.stream(3000, over))
    try:
        for _ in range(3):
            await workers.add()
        await until(lambda: chain.head(0), "the first step")
        for _ in range(4):
            await asyncio.sleep(rng.uniform(0.3, 1.2))
            await workers.kill(rng.choice(workers.running))
            await asyncio.sleep(rng.uniform(0.0, 0.8))
            await workers.add()
        sleeper = rng.choice(workers.running)
        sleeper.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)  # past its session: its partitions are another's by now
        sleeper.send_signal(signal.SIGCONT)
        await workers.add()
        await asyncio.sleep(1.5)
        assert await workers.stop(workers.running[0]) == 0, "SIGTERM ends a worker cleanly"
        over.set()
        await streaming
        await until(lambda: folded(chain, feed), "all folded")
        codes = [await workers.stop(worker) for worker in list(workers.running)]
        assert codes == [0] * len(codes)
        await check(chain, feed)
        assert all(len(sent) > 500 for sent in feed.sent.values())
    finally:
        over.set()
        for worker in list(workers.running):
            with contextlib.suppress(ProcessLookupError):
                await workers.kill(worker)
        seen = await redis.hgetall(f"{unique_name}:seen")
        print(seen)
        await redis.aclose()


async def test_the_group_is_gone_when_the_last_has_left(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """A stopped worker holds no member id, so a plain consumer gets all partitions without waiting."""
    settings = settings_for(stack, unique_name, session_timeout_s=60.0)
    receiver = await join(settings, MemoryChain())
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await receiver.stop()
    plain = AIOKafkaConsumer(unique_name, bootstrap_servers=stack.kafka_url, group_id=unique_name)
    await asyncio.wait_for(plain.start(), 30.0)
    await plain.stop()


async def test_a_static_member_restarts_without_a_rebalance(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """It finds its partitions as it left them; the others are not asked to join again. Not even for the leader."""
    settings = settings_for(stack, unique_name, session_timeout_s=60.0)
    chain = MemoryChain()
    receivers = {
        name: await join(settings.model_copy(update={"instance": name}), chain)
        for name in ("worker-0", "worker-1")
    }
    await until(lambda: [len(r.partitions) for r in receivers.values()] == [2, 2], "two each")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    for name, other in (("worker-0", "worker-1"), ("worker-1", "worker-0")):
        before, owned = receivers[other].seen["assigned"], receivers[name].partitions
        await receivers[name].stop()
        await feed.send(400)
        receivers[name] = await join(settings.model_copy(update={"instance": name}), chain)
        await until(lambda: folded(chain, feed), "what came meanwhile")
        assert receivers[name].partitions == owned
        assert receivers[other].seen["assigned"] == before, "the other one was asked to join again"
    await check(chain, feed)


async def test_a_static_member_that_stays_away_is_replaced(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """And is a member again when it comes back."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    first = await join(settings.model_copy(update={"instance": "a"}), chain)
    second = await join(settings.model_copy(update={"instance": "b"}), chain)
    await until(lambda: len(first.partitions) == len(second.partitions) == 2, "two each")
    await second.stop()
    await feed.send(400)
    await until(lambda: len(first.partitions) == 4, "all are the first one's")
    second = await join(settings.model_copy(update={"instance": "b"}), chain)
    await until(lambda: len(first.partitions) == len(second.partitions) == 2, "two each again")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)


async def test_a_group_that_did_not_know_its_topic_shares_it_out(
    stack: Services, unique_name: str, join: Join
) -> None:
    """As when its leader joined while Kafka could hardly be reached: seconds later, not the client's five minutes."""
    settings = settings_for(stack, unique_name)
    receivers = [await join(settings, MemoryChain()) for _ in range(2)]
    await until(lambda: all(receiver.seen["assigned"] for receiver in receivers), "a group of two")
    assert not any(receiver.partitions for receiver in receivers)
    await ensure_topics(settings, [TopicSpec(unique_name, 4, "partitions")])
    await until(
        lambda: [len(receiver.partitions) for receiver in receivers] == [2, 2], "two partitions each", 60.0
    )


async def test_two_workers_by_one_name_are_told_so(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """The one that joined first ends, and the other keeps what is its own now: neither takes it back for ever."""
    settings = settings_for(stack, unique_name, session_timeout_s=3.0, instance="worker-0")
    chain = MemoryChain()
    first = await join(settings, chain)
    await until(lambda: len(first.partitions) == 4, "assigned")
    second = await join(settings, chain)
    with pytest.raises(BrokerMisconfigured, match=r"worker-0.*own kafka\.instance"):
        await asyncio.wait_for(first.app.failed(), PATIENCE_S)
    await first.stop()
    await until(lambda: len(second.partitions) == 4, "the second owns all")
    assigned = second.seen["assigned"]
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await asyncio.sleep(4.0)  # longer than a session
    assert second.seen["assigned"] == assigned, "it was disturbed again"
    await check(chain, feed)


@pytest.mark.slow
async def test_partitions_that_were_added_are_noticed_soon(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """The client's own clock would let five minutes pass, in which others fold customers without their history."""
    receiver = await join(settings_for(stack, unique_name), MemoryChain())
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    async with admin(settings_for(stack, unique_name)) as client:
        await client.create_partitions({unique_name: NewPartitions(6)})

    async def counted() -> bool:
        return await receiver.source.partition_count() == 6

    await until(counted, "six partitions", 60.0)
    await until(lambda: len(receiver.partitions) == 6, "they are shared out", 60.0)
