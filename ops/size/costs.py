"""What one of each costs, measured; the command that measures it stands beside it. Take them again on your machine.

make bench ARGS='--only ours --json bench.json'      cpu_us, store_bytes_per_customer, rss_bytes_max
python -m tests.bench.bench_scorer                   rows a second of a device
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Unit costs. cpu_us: of a worker's process an event, everything included, scoring on its CPU. score_us: the part
    of it that a GPU takes over. customer_bytes: in Redis, of all that it holds of one. event_bytes: in Kafka, with its
    share of the batch, before replication. apply_us: of Redis' one thread an event, at most one commit each.
    worker_bytes: resident, a worker without its cache."""

    cpu_us: float = 100.0
    score_us: float = 40.0
    customer_bytes: float = 900.0
    event_bytes: float = 200.0
    apply_us: float = 25.0
    worker_bytes: float = 1_300e6


MEASURED = Costs()
"""On two shared cores of an AMD EPYC, the demo's spec, 25 events a customer."""
