"""How the fold's steps are compiled, and the stores' own functions as three steps of it.

Numba keeps what it compiled beside a file, under the function's name, and forgets it when this file changes; but not
when another one does, and a class of `arguments.py` that it no longer finds breaks the start. So the names bear a hash
of the text of all files that go into the loop: an upgrade never looks at what an older release has compiled.

The table of stores (`featurestore/aggregations.py`) is walked here, once, when this module is loaded: the compiler sees
a chain of calls, not a loop.
"""

import hashlib
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numba

from ebbtide.featurestore.aggregations import STORES, Store
from ebbtide.featurestore.record.arguments import FIRST_STORE

# Nothing here allocates, so nothing needs its references counted: without _nrt=False each use of a field counts up and
# down, atomically, which is nine tenths of the loop's time.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
_FOLDER = Path(__file__).parent
_FILES = [
    *(_FOLDER / name for name in ("loop.py", "compiled.py", "arguments.py")),
    _FOLDER.parent / "aggregations.py",
]
SOURCE = hashlib.blake2b(b"".join(file.read_bytes() for file in _FILES), digest_size=8).hexdigest()


def compiled(step: Callable[..., Any], **more: Any) -> Any:
    step.__qualname__ += f"_{SOURCE}"
    return numba.njit(**{**_OPTIONS, **more})(step)


def inlined(step: Callable[..., Any]) -> Any:
    """The steps are inlined by LLVM: a call would copy thirty array descriptors. Not kept by themselves: what they are
    part of is."""
    return compiled(step, forceinline=True, cache=False)


def _one_after_the_other(steps: list[Any]) -> Any:
    """Compiled steps of the same arguments as one: the loop over a table that the compiler sees unrolled."""

    def both(first: Any, second: Any) -> Any:
        def step(*args):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
            first(*args)
            second(*args)

        return inlined(step)

    return reduce(both, steps)


def _adder(store: Store) -> Any:
    """Puts a value of an event, if the store keeps it, into its cell."""
    x, field, add = STORES.index(store), FIRST_STORE + STORES.index(store), inlined(store.add)

    def step(f, plan, i, k, c, cell, value):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
        row = plan.row[x, k, c]
        if row >= 0:
            add(f[field], i, row, cell, value)

    return inlined(step)


def _clearer(store: Store) -> Any:
    """Empties the store's cells of a tile."""
    x, field, empty = STORES.index(store), FIRST_STORE + STORES.index(store), store.empty

    def step(f, plan, i, cell):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
        for row in range(plan.rows[x]):
            f[field][i, row, cell] = empty

    return inlined(step)


_TILED = [store for store in STORES if store.tiled]
add_to_tile = _one_after_the_other([_adder(store) for store in _TILED])
clear_tile = _one_after_the_other([_clearer(store) for store in _TILED])
set_latest = _one_after_the_other([_adder(store) for store in STORES if not store.tiled])
