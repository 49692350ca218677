"""`make fuzz`, `python -m tests.fuzz`: malformed records and requests by the million, and whether all of it adds up.

Of the records six in ten are malformed; the others are what a parser that refuses everything would be found out by.

    --records         through the parser, under several specs and mappings            no server needed
    --through-kafka   of another million, through Kafka and a worker process
    --batches         as other clients write them, byte by byte, through the same     with the requests at the same time
    --requests        to that worker's HTTP face

Exit code 1 when anything crashed, was lost, or was answered as it must not be.
"""

import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

import click

from ebbtide.ops.commands.options import json_option
from ebbtide.ops.config.child import quiet_libraries
from ebbtide.ops.console import steps, table_and_json
from ebbtide.stream.clock import SystemClock
from tests.fuzz.figures import Serving, figures, table_of
from tests.fuzz.parsing import fuzz_parser


@click.command()
@click.option("--records", type=click.IntRange(0), default=2_000_000, show_default=True)
@click.option("--through-kafka", type=click.IntRange(0), default=100_000, show_default=True)
@click.option("--batches", type=click.IntRange(0), default=2_000, show_default=True)
@click.option("--requests", type=click.IntRange(0), default=50_000, show_default=True)
@click.option("--seed", type=int, help="Printed at the start; the same one gives the same records.")
@json_option
def main(
    records: int, through_kafka: int, batches: int, requests: int, seed: int | None, json_path: Path | None
) -> None:
    """Malformed records and HTTP requests against the parser, a real worker and its HTTP face."""
    seed = secrets.randbelow(2**31) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    clock, seconds = SystemClock(), {}
    serving = Serving()
    with steps() as progress:
        began_s = clock.monotonic_s()
        progress("parsing")
        parsing = fuzz_parser(seed, records, lambda n: progress.advance(n, records, f"{n:,} records"))
        seconds["parser"] = clock.monotonic_s() - began_s
        if through_kafka or batches or requests:
            began_s = clock.monotonic_s()
            progress("a worker")
            quiet_libraries()
            from tests.fuzz.serving import fuzz_worker  # brings TensorFlow

            with tempfile.TemporaryDirectory(prefix="ebbtide-fuzz-") as folder:
                serving = asyncio.run(
                    fuzz_worker(
                        seed,
                        through_kafka,
                        batches,
                        requests,
                        Path(folder),
                        lambda what, share: progress.advance(share, 1.0, what),
                    )
                )
            seconds["worker"] = clock.monotonic_s() - began_s
    data = figures(parsing, serving, seconds, seed)
    table_and_json(table_of(data), data, json_path)
    for failure in data["failures"]:
        click.echo(f"failed: {failure}", err=True)
    sys.exit(1 if data["failures"] else 0)


if __name__ == "__main__":
    main()
