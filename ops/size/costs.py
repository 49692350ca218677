"""What one of each costs, measured; the command that measures it stands beside it. Take them again on your machine.

    make bench ARGS='--only ours --json bench.json'      cpu_us, parts_us.score, cores.redis, rss_bytes_max

and give the file to `ebbtide size --bench`. customer_bytes: `used_memory` of a Valkey 9 before and after 5,000
customers of the demo's spec, 25 events each. event_bytes: the demo's JSON with its key and Kafka's record around
it, uncompressed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Unit costs. cpu_us: of a worker's process an event, everything included, scoring on its CPU. score_us: the part
    of it that a GPU takes over. customer_bytes: in Redis, of all that it holds of one. event_bytes: in Kafka, with its
    share of the batch, before replication. apply_us: of Redis' one thread an event, at most one commit each.
    worker_bytes: resident, a worker without its cache."""

    cpu_us: float = 60.0
    score_us: float = 3.3
    customer_bytes: float = 633.0
    event_bytes: float = 150.0
    apply_us: float = 7.5
    worker_bytes: float = 1_240e6


MEASURED = Costs()
"""On two cores of an AMD EPYC that others kept busy (load 11): an upper bound for a quiet machine of that kind."""
