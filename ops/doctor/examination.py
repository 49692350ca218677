"""All checks of a deployment, in the order in which a worker would meet what they look at. Changes nothing anywhere."""

from collections.abc import Callable

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.doctor.broker import examine_kafka
from ebbtide.ops.doctor.finding import Finding, Level, attempt, ok
from ebbtide.ops.doctor.serving import examine_http, examine_model
from ebbtide.ops.doctor.state import examine_state
from ebbtide.ops.doctor.state_server import examine_redis
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.clock import Clock
from ebbtide.stream.kafka.topics import examine


async def examine_deployment(
    settings: Settings, clock: Clock, *, model: bool = True, step: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Everything. `model`: load it, too; TensorFlow is loaded then. `step` hears what is looked at.

    A party that cannot be reached is one error; what depends on it is not asked."""
    found: list[Finding] = []
    step("spec")
    try_spec = await attempt("spec", lambda: _spec(settings))
    found += try_spec
    if any(each.level is Level.ERROR for each in try_spec):
        return found
    layout = Layout(load_spec(settings.spec))
    step("Kafka")
    kafka = await examine_kafka(settings, layout.spec, clock)
    found += kafka
    step("Redis")
    found += await attempt("redis", lambda: _stored(settings, layout, clock, reached=len(kafka) > 1))
    if model:
        step("the model")
        found += await attempt("model", lambda: examine_model(settings, layout))
    return [*found, *examine_http(settings.http)]


async def _spec(settings: Settings) -> list[Finding]:
    spec = load_spec(settings.spec)
    settings.check_spec(spec)
    return [ok("spec", f"{spec.name}, from {settings.spec}")]


async def _stored(settings: Settings, layout: Layout, clock: Clock, *, reached: bool) -> list[Finding]:
    """`reached`: Kafka answers, so that state and log can be held against each other."""
    topic = settings.kafka.topic
    there = reached and (await examine(settings.kafka, [topic], ()))[1][topic].described
    partitions = there.partitions if there and there.there else settings.topics.partitions
    async with open_store(settings, layout, partitions) as store:
        found = await attempt("redis", lambda: examine_redis(store, clock))
        if there and there.there:
            found += await attempt("state", lambda: examine_state(settings, layout, store))
    return found
