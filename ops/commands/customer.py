"""`ebbtide customer`: what `/v1/customers/{id}` answers, from Redis and the model's folder; no worker is needed."""

import asyncio
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ebbtide.featurestore.events.contract import USER_ID_CHARS_MAX
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.asking.customer import Ask, Asked, Found, find, of_first, view
from ebbtide.ops.asking.show import customer_table
from ebbtide.ops.commands.options import DATE, config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.ops.worker.connect import open_state
from ebbtide.stream.clock import SystemClock


@click.command()
@config_option
@click.argument("customer", metavar="CUSTOMER")
@click.option(
    "--as-of", "as_of_ms", type=DATE, metavar="DATE", help="Not before what is known; default: now."
)
@json_option
def command(config: Path | None, customer: str, as_of_ms: int | None, json_path: Path | None) -> int:
    """What is known of CUSTOMER: what they did when, what the serving version says now and over the coming silence,
    and why; their episode.

    Where the spec's customers are several fields, CUSTOMER is all of them joined by / (in a field ~ is written ~0 and
    / is written ~1), or the first one alone, which lists who begins with it.

    Exit code 1: nothing is known of them.
    """
    settings = load_settings(config)
    if not 1 <= len(customer) <= USER_ID_CHARS_MAX:
        raise SettingsError(f"a customer id has 1 to {USER_ID_CHARS_MAX} characters, not {len(customer)}")
    layout = Layout(load_spec(settings.spec))
    try:
        names_first = layout.spec.names_first(customer)
    except ValueError as error:
        raise SettingsError(f"{customer!r}: {error}") from None
    with steps() as progress:
        progress("asking Redis")
        if names_first:
            return _list(asyncio.run(_of_first(settings, layout, customer)), customer, json_path)
        found = asyncio.run(_find(settings, layout, customer))
        if found is None:
            console().print("nothing is known of this customer")
            return 1
        known_ms = int(found.row["row_watermark"])
        as_of = max(SystemClock().now_ms(), known_ms) if as_of_ms is None else as_of_ms
        if as_of < known_ms:
            raise SettingsError(
                f"what is known of them is later than that: {known_ms} ms", hint="leave --as-of out"
            )
        progress("loading the model")
        load_tensorflow()
        data: dict[str, Any] = asyncio.run(view(customer, found, layout, _ask(settings, layout), as_of))
    table_and_json(customer_table(data), data, json_path)
    return 0


def _list(names: list[str], first: str, json_path: Path | None) -> int:
    table = Table("customer", box=None, pad_edge=False)
    for name in names:
        table.add_row(name)
    table_and_json(table if names else None, {"first_part": first, "customers": names}, json_path)
    if not names:
        console().print("nothing is known of this customer")
    return 0 if names else 1


async def _of_first(settings: Settings, layout: Layout, first: str) -> list[str]:
    async with open_state(settings, layout) as store:
        return await of_first(store, first)


async def _find(settings: Settings, layout: Layout, customer: str) -> Found | None:
    async with open_state(settings, layout) as store:
        return await find(store, layout.spec, customer)


def _ask(settings: Settings, layout: Layout) -> Ask:
    from ebbtide.model.serving.scorer import of_target  # noqa: PLC0415 - as below
    from ebbtide.ops.worker.compose import load_slot  # noqa: PLC0415 - brings TensorFlow, which is loaded quietly

    serving = load_slot(settings, layout, whole=False).current

    async def ask(rows: Rows, as_of: NDArray[np.int64]) -> Asked:
        p = of_target(serving.model.score(rows, as_of), 0)
        return Asked(p, serving.model.explain(rows[:1], as_of[:1]), serving.version)

    return ask
