"""`ebbtide stack up`: the local servers for other commands to use. What is printed stands in `ops/stack/up.py`."""

from pathlib import Path

import click

from ebbtide.ops.console import steps


@click.group()
def command() -> None:
    """Apache Kafka and Valkey on this machine, from package registries alone: no Docker, no system Java."""


@command.command()
@click.option("--keep", is_flag=True, help="Leave data and logs where they are at the end.")
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Folder of the data; one that was used before goes on with them. Kept at the end.",
)  # fmt: skip
@click.option("--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True)
def up(keep: bool, directory: Path | None, brokers: str) -> None:
    """Start both, print their URLs as shell lines, run until Ctrl-C.

    \b
      ebbtide stack up > stack.env &     then, in this or any other shell:     source stack.env
    """
    from ebbtide.ops.stack.up import up as run  # noqa: PLC0415 - an extra that production does without

    with steps() as progress:
        run(keep=keep, directory=directory, brokers=int(brokers), progress=progress)


@command.command()
def warm() -> None:
    """Download Apache Kafka and note what it loads, so that every later start is some 2 s faster. Once a machine."""
    from ebbtide.ops.stack.kafka import warm as run  # noqa: PLC0415 - an extra that production does without

    with steps() as progress:
        run(progress=progress)
