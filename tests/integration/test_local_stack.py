"""The local stack starts real servers, keeps their data, and never outlives its process."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from ops.stack_probe import redis_pid
from tests.support.services import Services


async def test_a_record_goes_through_kafka(stack: Services, unique_name: str) -> None:
    """A topic is created, a record is produced and read back."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_url)
    await admin.start()
    await admin.create_topics([NewTopic(unique_name, num_partitions=3, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka_url) as producer:
        await producer.send_and_wait(unique_name, b"value", key=b"key", partition=2)
    consumer = AIOKafkaConsumer(
        unique_name, bootstrap_servers=stack.kafka_url, group_id=unique_name, auto_offset_reset="earliest"
    )
    async with consumer:
        record = await asyncio.wait_for(consumer.getone(), 20)
    assert (record.partition, record.key, record.value) == (2, b"key", b"value")


def test_valkey_and_debian_redis_answer(stack: Services, debian_redis_url: str) -> None:
    """Both speak the protocol, and they are two servers."""
    ports = [int(url.split(":")[2].split("/")[0]) for url in (stack.redis_url, debian_redis_url)]
    pids = [redis_pid(port) for port in ports]
    assert None not in pids and len(set(pids)) == 2
