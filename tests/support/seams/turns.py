"""Turns for tests that drive one partition by hand, without a worker."""

from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.decision.suppression import NO_SUPPRESSION
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.opened import Opened
from ebbtide.stream.turn.work import Piece


def from_the_beginning(layout_id: str, partition: int, partitions: int) -> Opened:
    """A partition that never began, at offset 0; all is news, and nothing is a flood."""
    begun = Checkpoint(0, 0, 0, layout_id, partitions)
    return Opened(partition, None, begun, NO_SUPPRESSION, FloodGuard(1.0))


async def take_over(tools: Tools, opened: Opened, batch: FetchedBatch) -> None:
    """Take the partition over a batch, a turn a piece. Raises what a turn failed of."""
    pipeline = Pipeline(tools)
    for piece in batch.cut_before_tombstones():
        error = (await pipeline.turn([Piece(opened, piece)]))[opened.partition]
        if error is not None:
            raise error
