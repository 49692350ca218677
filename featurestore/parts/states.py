"""Every customer's record as of a time, part by part by an engine: what a backfill stores."""

from functools import partial

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.engine import Engine, Progress
from ebbtide.featurestore.parts.part import Part, parts_of
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.replay import state_at
from ebbtide.featurestore.spec import Spec


def states_by(
    engine: Engine, layout: Layout, log: EventBatch, before_ms: int, progress: Progress = lambda _: None
) -> Rows:
    """records[m] of `log.customers` after all that arrived before `before_ms` (ms UTC), what was due by then taken;
    unseen customers are zero bytes. The same bytes whatever the engine. Raises JobFailed."""
    count = engine.parts(len(log))
    if count == 1:
        return state_of(layout.spec, before_ms, Part.whole(log))
    parts = parts_of(log, count)
    found = engine.map(partial(state_of, layout.spec, before_ms), parts, progress)
    rows = layout.empty(len(log.customers))
    whole = rows.view(f"V{layout.itemsize}")  # bytes, else field by field
    for part, some in zip(parts, found, strict=True):
        whole[part.customers] = some.view(f"V{layout.itemsize}")
    return rows


def state_of(spec: Spec, before_ms: int, part: Part) -> Rows:
    """What is done to each part, wherever that is."""
    layout = Layout(spec)
    rows, _ = Folder(layout).elapse(state_at(layout, part.log, before_ms, reached=part.reached), before_ms)
    return rows
