"""The servers that a command needs and nobody has configured: they run on this machine for as long as it does."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ebbtide.ops.config.settings import Settings
from ebbtide.ops.errors import SettingsError


@contextmanager
def stack(settings: Settings, progress: Callable[[str], None]) -> Iterator[Settings]:
    """Settings with both URLs: a server that none is configured for runs on this machine while the block does.

    Raises StackError, and SettingsError where the local servers are not installed.
    """
    with ExitStack() as running:
        if settings.local_kafka or settings.local_redis:
            local = _local_stack()
            if not settings.local_kafka:  # which says so itself, as it takes longer
                progress("starting Valkey")
        if settings.local_kafka and settings.local_redis:
            both = running.enter_context(local.LocalStack(progress=progress))
            kafka, redis = both.kafka_url, both.redis_url
        elif settings.local_kafka:
            kafka = running.enter_context(local.LocalKafka(progress=progress)).url
        elif settings.local_redis:
            redis = running.enter_context(local.LocalValkey()).url
        if settings.local_kafka:
            settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"url": kafka})})
        if settings.local_redis:
            settings = settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": redis})})
        yield settings


def check_configured(settings: Settings) -> None:
    """Raises SettingsError where no Kafka or no Redis is configured: for who works on what is there already."""
    if settings.local_kafka or settings.local_redis:
        raise SettingsError(
            "there is no Kafka or no Redis to work on: none is configured, and one started now would be empty",
            hint="set EBBTIDE_KAFKA_URL and EBBTIDE_REDIS_URL",
        )


def _local_stack() -> Any:
    try:
        from ebbtide.ops.stack import local  # noqa: PLC0415 - an extra that production does without
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"no URL is configured, and the local servers are not installed ({error.name} is missing)",
            hint="set EBBTIDE_KAFKA_URL and EBBTIDE_REDIS_URL, or install ebbtide[local]",
        ) from None
    return local
