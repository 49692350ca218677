"""What a worker is made of: the one place that knows every real part by name.

    settings ─▶ spec, layout ─▶ versions (slot) ─▶ batcher ─┐
                       └─▶ folder, parser, cache ───────────┼─▶ Tools of every partition's pipeline
                              store, sink, clock, telemetry ┘

It puts parts together and starts none of them. A version's policy is made here, of its manifest and the settings, when
the version is loaded: what does not fit is refused before it serves.
"""

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from uuid import uuid4

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.hashing import murmur2_texts
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.target import ALL_ACTIVITY
from ebbtide.model.serving import runtime, xla_cache
from ebbtide.model.serving.manifest import Manifest
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.serving.slot import ScorerSlot, ServedVersion
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.errors import SettingsError
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.policy import Policy
from ebbtide.stream.outputs.dead_letter import BYTES_MAX
from ebbtide.stream.outputs.message import Delivery
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry, Tracer


def policy_of(
    manifest: Manifest, settings: PolicySettings, targets: Sequence[str] = (ALL_ACTIVITY,)
) -> EpisodePolicy:
    """`enter` and `exit` from the settings where given, else from the model's manifest, for each target of the spec, by
    name. Raises ValueError where the two do not fit together."""
    chosen = [(*manifest.thresholds_of(index), target) for index, target in enumerate(targets)]
    return settings.policy([settings.rules(*each) for each in chosen])


def serving(scorer: Scorer, settings: PolicySettings) -> ServedVersion[Policy]:
    """A scorer in service by itself, without a slot: for whoever judges one version."""
    manifest = scorer.manifest
    return ServedVersion(
        manifest.name,
        manifest.version,
        scorer,
        policy_of(manifest, settings, manifest.parsed_spec().target_names),
    )


def load_slot(settings: Settings, layout: Layout, *, whole: bool = True) -> ScorerSlot[Policy]:
    """The versions that the settings name, the right one loaded. Blocks for seconds. Raises ModelError.

    whole: in all padded sizes, else in the first; `slot.widen` adds the others."""
    key = settings.model_key.get_secret_value() if settings.model_key else None
    return ScorerSlot(
        settings.model,
        layout,
        lambda manifest: policy_of(manifest, settings.policy, layout.spec.target_names),
        key=key,
        compiled=xla_cache.folder_of(settings.compiled),
        whole=whole,
    )


async def tools_of(
    settings: Settings,
    layout: Layout,
    slot: ScorerSlot[Policy],
    store: Store,
    sink: Delivery,
    telemetry: Telemetry,
    dead_letter_bytes_max: int = BYTES_MAX,
    tracer: Tracer | None = None,
) -> Tools:
    """What every partition's pipeline works with, compiled; its batcher is not running yet."""
    clock = SystemClock()
    batcher = Batcher(
        lambda: slot.current,
        clock,
        telemetry,
        deadline_s=settings.batching.deadline_s,
        linger_s=settings.batching.linger_s,
    )
    tools = Tools(
        topic=settings.kafka.topic,
        outputs=Outputs(
            settings.topics.alerts,
            settings.topics.dead_letters,
            settings.topics.scores,
            settings.topics.audit,
            dead_letter_bytes_max,
            layout.spec.target_names,
            composite=layout.spec.customer is not None,
        ),
        layout=layout,
        folder=Folder(layout),
        parser=Parser(layout.spec, settings.parse_limits),
        store=store,
        cache=Cache(layout.dtype, settings.redis.cache_bytes_max),
        sink=sink,
        batcher=batcher,
        clock=clock,
        telemetry=telemetry,
        tracer=tracer,
        at_risk_from=settings.at_risk_from,
        platform=runtime.platform(),
    )
    await asyncio.to_thread(_warm, tools.folder, layout)
    # TensorFlow's half a million objects are here to stay. A collection that looks at them stops everything for 0.2 s,
    # and the last one keeps a worker that has drained from ending, on a busy machine for seconds.
    gc.freeze()
    return tools


@contextmanager
def traces_of(settings: Settings) -> Iterator[Tracer | None]:
    """What makes the traces of turns, None where none are wanted; what is left is sent at the end of the block. Raises
    SettingsError."""
    wanted = settings.traces
    if wanted.url is None:
        yield None
        return
    try:
        # Here alone, so that a worker without traces does not even load the library.
        from ebbtide.ops.observe.traces import Traces  # noqa: PLC0415 -- free when off
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"traces.url is set and {error.name} is not installed", hint="pip install 'ebbtide[traces]'"
        ) from None
    who = {
        "service.name": "ebbtide",
        "service.version": version("ebbtide"),
        "service.instance.id": uuid4().hex,
    }
    key = wanted.authorization.get_secret_value() if wanted.authorization else None
    traces = Traces(SystemClock(), wanted.url, settings.kafka.topic, wanted.share, key, who)
    try:
        yield traces.turn
    finally:
        traces.close()


def _warm(folder: Folder, layout: Layout) -> None:
    """Compile what Numba compiles, or read it from the cache, before the group waits for us."""
    murmur2_texts([b"warm"])
    folder.fold(layout.empty(0), EventBatch.empty())
    folder.due(layout.empty(1))
    folder.elapse(layout.empty(1), 1)
