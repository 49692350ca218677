"""Several targets in service: whoever is not scored is decided about by each of them, too."""

import asyncio
from dataclasses import replace

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import dump_spec, parse_spec
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.rules import Rules
from tests.support.seams.scoring import SPEC, ArithmeticModel
from tests.support.seams.streams import LogRecord
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.seams.world import PARTITIONS, T0, TOPIC, World

SERVED = parse_spec(
    dump_spec(SPEC) | {"targets": [{"name": name, "kinds": [name]} for name in ("visit", "purchase")]}
)
LAYOUT = Layout(SERVED)


class CertainModel(ArithmeticModel):
    """Everybody is lost to the second target, and nobody to the first."""

    def __init__(self) -> None:
        super().__init__(policy=EpisodePolicy((Rules(enter=0.8, exit=0.5), Rules(enter=0.8, exit=0.5))))

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        del as_of
        return np.tile(np.array([0.1, 0.9], np.float32), (len(rows), 1))

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        del as_of
        nothing = np.zeros((len(rows), len(features(SERVED))), np.float32)
        return Explained.by(nothing, nothing)._replace(further=(Explained.by(nothing, nothing),))


@pytest.mark.parametrize(
    ("what", "told"),
    [("a tombstone", ["opened"]), ("a leave", ["opened", "resolved"])],
)
async def test_a_turn_that_scores_nobody_decides_for_every_target(what: str, told: list[str]) -> None:
    """ann is alerted about by the second target; what comes next, alone in its turn, asks the model nothing."""
    world = World(0, [[] for _ in range(PARTITIONS)], 0.0)
    world.model = CertainModel()
    tools = replace(
        world.tools(), layout=LAYOUT, folder=Folder(LAYOUT), parser=Parser(SERVED),
        store=MemoryStore(LAYOUT.dtype, PARTITIONS), cache=Cache(LAYOUT.dtype, 2048 * LAYOUT.itemsize),
    )  # fmt: skip

    def said(kind: str, ts: int) -> bytes:
        return orjson.dumps({"user_id": "ann", "type": kind, "ts": ts})

    last = None if what == "a tombstone" else said("goodbye", T0 + 2)
    log = [said("visit", T0), said("purchase", T0 + 1), last]
    serving = asyncio.create_task(tools.batcher.run())
    opened = from_the_beginning(LAYOUT.id, 0, PARTITIONS)
    for n, value in enumerate(log):
        record = LogRecord(n, T0 + n, b"ann", value)
        await take_over(tools, opened, FetchedBatch(TOPIC, 0, 0, n, n + 1, [record]))
    serving.cancel()
    assert opened.checkpoint.offset == len(log)
    alerts = [orjson.loads(m.value) for m in world.sink.sent["alerts"] if m.value is not None]
    assert [(alert["target"], alert["state"]) for alert in alerts] == [("purchase", state) for state in told]
    assert (await tools.store.find("ann") == []) == (last is None)
