"""Each topic of a run held against its offline replay, and one verdict of them all.

Invariant: it is imported when the last worker has ended, for it brings TensorFlow: until then the cores are theirs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.chaos.comparison import Comparison
from tests.chaos.expected import Replay
from tests.chaos.outputs import compare_outputs
from tests.chaos.scores import ScoresRead, read_scores
from tests.chaos.verdict import Verdict, check_timers, compare, compare_state, timers_of


async def compared(topics: Sequence[Comparison]) -> Verdict:
    """All of them."""
    whole = Verdict()
    for topic in topics:
        whole.add(topic.name, await _compared(topic))
    return whole


async def _compared(topic: Comparison) -> Verdict:
    settings, acknowledged = topic.settings, topic.acknowledged
    scores = ScoresRead() if acknowledged is None else await read_scores(settings)
    expected = await Replay(settings, scores, topic.remade, await timers_of(settings)).run()
    if acknowledged is None:
        return await compare_state(settings, expected)
    verdict = await compare(settings, expected, acknowledged, compacted=topic.compacted)
    await compare_outputs(verdict, settings, expected, scores, acknowledged)
    # Of the first topic alone: versions of all, added up, would be two without a swap.
    seen = verdict.figures.pop("model_versions_seen")
    if topic.due_by_ms is not None:
        check_timers(verdict, expected, topic.due_by_ms)
        verdict.figures |= {"model_versions_seen": seen, "memories": len(expected.memories)}
        quiet = verdict.latencies[:, 0] >= topic.quiet_from_ms
        verdict.figures |= _latencies("alert_latency", verdict.latencies[~quiet, 1])
        verdict.figures |= _latencies("quiet_alert_latency", verdict.latencies[quiet, 1])
    return verdict


def _latencies(name: str, times_s: NDArray[np.float64]) -> dict[str, float]:
    """Of alerts, from an event's acknowledgement on: faults, outages and replays count. Of none: infinite."""
    p50, p99 = np.quantile(times_s, (0.5, 0.99)).tolist() if len(times_s) else (np.inf, np.inf)
    return {f"{name}_s_p50": round(p50, 2), f"{name}_s_p99": round(p99, 2)}
