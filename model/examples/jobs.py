"""A log's points gathered part by part, each with the customers of one hash: the same bytes as of the whole.

    log ──hash of the customer's id──▶ part 0 ─▶ engine ─gather─▶ ┐
                                       part 1 ─▶ engine ─gather─▶ ├─merged─▶ Gathered
                                       …                          ┘

Customers share nothing in the fold, and what is kept of them is chosen by a hash of each point, so how they are dealt
out, and who works on them (`featurestore/parts/`), shows in nothing but the time it takes.
"""

from functools import partial

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.engine import Engine, Progress
from ebbtide.featurestore.parts.part import Part, parts_of
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.model.examples.sample import Gathered, Wanted, gather, merged


def gather_by(
    engine: Engine, layout: Layout, log: EventBatch, wanted: Wanted, progress: Progress
) -> Gathered:
    """`gather` of the whole log by an engine, by this process if one part is enough. Raises JobFailed."""
    count = engine.parts(len(log))
    if count == 1:
        return gather(layout, Part.whole(log), wanted, progress)
    found = engine.map(partial(gather_part, layout.spec, wanted), parts_of(log, count), progress)
    return merged(layout, found, wanted)


def gather_part(spec: Spec, wanted: Wanted, part: Part) -> Gathered:
    """What is done to each part, wherever that is: no TensorFlow is loaded there."""
    return gather(Layout(spec), part, wanted)
