"""A stage's value as files: JSON for what is small, one `.npy` for each array; no pickle, so nothing of it runs.

    value.json            the tree: numbers, texts, lists, dicts; our dataclasses and pydantic models by name
    arrays/0007.npy       its arrays, bit for bit

What is no dataclass of ours (a network, a layout) has a `Carrier`, which says what is stored of it and makes it again.
Reading makes objects of our own packages only, whatever the file names.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

VALUE = "value.json"
ARRAYS = "arrays"
OURS = ("ebbtide.model.", "ebbtide.featurestore.")
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class Carrier:
    """How objects of `type` are carried: `pack` gives what is stored of one, `unpack` makes it again."""

    type: type
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


Carriers = Mapping[str, Carrier]
"""By the name that stands in the file."""


def write_value(folder: Path, value: Any, carriers: Carriers) -> None:
    """Write a value into an empty folder. Raises TypeError for what cannot be carried, OSError."""
    (folder / ARRAYS).mkdir()
    tree = _Writer(folder, carriers).tree(value)
    (folder / VALUE).write_text(json.dumps(tree, separators=(",", ":")), encoding="utf-8")


def read_value(folder: Path, carriers: Carriers) -> Any:
    """The value of a folder. Raises ValueError for what `write_value` has not written, OSError."""
    tree = json.loads((folder / VALUE).read_text(encoding="utf-8"))
    return _Reader(folder, carriers).value(tree)


class _Writer:
    def __init__(self, folder: Path, carriers: Carriers) -> None:
        self._folder, self._carriers, self._arrays = folder, carriers, 0

    def tree(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        for name, carrier in self._carriers.items():
            if isinstance(value, carrier.type):
                return {"as": name, "of": self.tree(carrier.pack(value))}
        if isinstance(value, np.ndarray) and value.dtype != object:
            return {"as": "array", "of": self._array(value)}
        if isinstance(value, np.generic):
            return self.tree(value.item())
        if isinstance(value, list):
            return [self.tree(each) for each in value]
        if isinstance(value, dict):
            return {"as": "dict", "of": [[self.tree(k), self.tree(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            named = {"named": _name(value)} if hasattr(value, "_fields") else {}
            return {"as": "tuple", "of": [self.tree(each) for each in value], **named}
        if isinstance(value, datetime):
            return {"as": "datetime", "of": value.isoformat()}
        if isinstance(value, BaseModel):
            return {"as": "model", "of": value.model_dump(mode="json"), "named": _name(value)}
        if is_dataclass(value):
            of = {field.name: self.tree(getattr(value, field.name)) for field in fields(value)}
            return {"as": "dataclass", "of": of, "named": _name(value)}
        raise TypeError(f"{type(value).__name__} cannot be carried from stage to stage")

    def _array(self, array: NDArray[Any]) -> str:
        name = f"{ARRAYS}/{self._arrays:04d}.npy"
        self._arrays += 1
        plain = np.ascontiguousarray(array)
        with (self._folder / name).open("wb") as file:
            # As `np.save` does, but for the bytes: it hands them to C, whose error on a full disk has no errno.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
            file.write(plain.reshape(-1).view(np.uint8).data)
        return name


class _Reader:
    def __init__(self, folder: Path, carriers: Carriers) -> None:
        self._folder, self._carriers = folder, carriers

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.value(each) for each in tree]
        if not isinstance(tree, dict):
            return tree
        of = tree["of"]
        match tree["as"]:
            case "array":
                return np.load(self._folder / of, allow_pickle=False)
            case "dict":
                return {self.value(key): self.value(value) for key, value in of}
            case "tuple":
                parts = [self.value(each) for each in of]
                return _type(tree["named"])(*parts) if "named" in tree else tuple(parts)
            case "datetime":
                return datetime.fromisoformat(of)
            case "model":
                return _type(tree["named"]).model_validate(of)
            case "dataclass":
                return _type(tree["named"])(**{name: self.value(each) for name, each in of.items()})
            case name if name in self._carriers:
                return self._carriers[name].unpack(self.value(of))
            case name:
                raise ValueError(f"nobody knows how {name!r} is carried")


def _name(value: Any) -> str:
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    if not name.startswith(OURS):
        raise TypeError(f"{name} is no type of ours, so it cannot be carried from stage to stage")
    return name


def _type(name: str) -> Any:
    module, _, qualified = name.partition(":")
    found: Any = importlib.import_module(module) if name.startswith(OURS) else None
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not (is_dataclass(found) or issubclass(found, BaseModel | tuple)):
        raise ValueError(f"{name} is no type of a stage's value")
    return found
