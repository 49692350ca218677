"""The kinds of events of a spec: which event types, what role, and what is kept of their values.

The roles, by what they do:

    activity    what the customer does: moves last-seen; re-arms silence and is the label unless a target says otherwise
    contact     what we do to the customer (a mailing, a call): counted apart, never life
    terminal    an explicit leave: not scored until the next activity
    attribute   a last value (a number, a category, or a date turned into days until)
"""

import re
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ebbtide.featurestore.aggregations import BY_NAME, Aggregation, Reads, Store

Role = Literal["activity", "contact", "terminal", "attribute"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
VALUES_MAX = 8
"""Values a kind: each is a column of every batch."""
CATEGORIES_MAX = 64
TEXTUAL = ("category", "date", "text")
"""What may be text where the stream has it."""


class Frozen(BaseModel):
    """A part of a spec: nothing in it changes, and nothing unknown is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _known(name: str) -> str:
    if name not in BY_NAME:
        raise ValueError(f"{name!r} is no aggregation: {', '.join(BY_NAME)}")
    return name


def plural(noun: str) -> str:
    """Of an English noun, by rule: purchases, searches, replies. What follows no rule is for a spec to say."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def _path(path: str) -> str:
    if not re.fullmatch(r"value|properties(\.[^.]+)+", path):
        outer, _, field = path.rpartition(".")
        how = (
            f": under mapping: {{properties: {outer}}} it is 'properties.{field}'" if outer and field else ""
        )
        raise ValueError(f"a value is 'value' or 'properties.<field>', not {path!r}{how}")
    return path


AggregationName = Annotated[str, AfterValidator(_known)]
ValuePath = Annotated[str, AfterValidator(_path)]


class Value(Frozen):
    """One value of a kind's events: where it lies (`from`), how reasons call it, and what is kept of it."""

    name: Name | Literal[""]
    path: ValuePath = Field(alias="from")
    noun: str = ""
    aggregate: tuple[AggregationName, ...] = ()
    categories: Annotated[tuple[str, ...], Field(max_length=CATEGORIES_MAX)] = ()
    attribute: Literal["number", "category", "date"] | None = None
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" in data and "path" not in data:
            name = str(data["name"])
            data = {"noun": name.replace("_", " "), "from": f"properties.{name}", **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        reads = {BY_NAME[name].reads for name in self.aggregate}
        if len(reads) > 1:
            raise ValueError(
                f"value {self.name}: {', '.join(self.aggregate)} read it in {len(reads)} ways: list it once for each"
            )
        if self.attribute is None and (reads == {"category"}) != bool(self.categories):
            raise ValueError(
                f"value {self.name}: categories are listed for aggregate: [share], and only for it"
            )
        return self

    @property
    def reads(self) -> Reads:
        """What sort of value it is."""
        return self.attribute or (BY_NAME[self.aggregate[0]].reads if self.aggregate else "number")

    @property
    def stores(self) -> tuple[Store, ...]:
        """What the record keeps of it, each once."""
        return tuple(dict.fromkeys(BY_NAME[name].store for name in self.aggregate))

    def rows(self, store: Store) -> int:
        """How many rows of a store's cells it takes."""
        return (len(self.categories) if store.by_category else 1) if store in self.stores else 0

    def asks_for(self, aggregation: Aggregation) -> bool:
        return aggregation.name in self.aggregate


class Kind(Frozen):
    """One kind of event: the event types it covers, its role, and what is kept of its value, or of its `values`.

    `value`, `aggregate` (and of attributes `attribute`, `categories`) say it of one value without a name. `features`:
    whether the model is told how many there were and when; false for what only decides the label, or nothing. `noun`:
    how several of them are called, `one`: how one is; "" where neither the spec nor the name says it.
    """

    name: Name
    types: tuple[str, ...] = ()
    role: Role = "activity"
    noun: str = ""
    one: str = ""
    value: ValuePath | None = None
    aggregate: tuple[AggregationName, ...] = ()
    values: Annotated[tuple[Value, ...], Field(max_length=VALUES_MAX)] = ()
    features: bool = True
    decay: bool = True
    score: Literal["auto", "always", "never"] = "auto"
    stamp: Literal["as_is", "day_end"] = "as_is"
    attribute: Literal["number", "category", "date"] | None = None
    categories: Annotated[tuple[str, ...], Field(max_length=CATEGORIES_MAX)] = ()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" in data:
            one = str(data["name"]).replace("_", " ")
            data = {"types": (data["name"],), "noun": plural(one), **data}
            if data["noun"] == plural(one):
                data = {"one": one, **data}
            if data.get("role") == "attribute":
                data = {"value": "value", "attribute": "number", **data}
            elif data.get("aggregate"):
                data = {"value": "value", **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [value.name for value in self.values]
        wrong = {
            "needs at least one event type": not self.types,
            "role attribute and attribute: number|category|date go together": (
                (self.role == "attribute") != (self.attribute is not None)
            ),
            "an attribute keeps its last value; aggregate is for other roles": (
                self.role == "attribute" and bool(self.aggregate or self.values)
            ),
            "value and aggregate are for one value, values for several: write one or the other": (
                bool(self.values) and (self.value is not None or bool(self.aggregate))
            ),
            "a value is listed twice": len(set(names)) < len(names),
            "a path is read as a number or as text, not as both": len(
                {(value.path, value.reads in TEXTUAL) for value in self.values}
            )
            > len({value.path for value in self.values}),
            "features: false keeps nothing of it: leave aggregate and values out, or true for an attribute": (
                not self.features
                and (
                    self.role == "attribute" or bool(self.aggregate) or any(v.aggregate for v in self.values)
                )
            ),
            "categories are listed for attribute: category and aggregate: [share], and only for them": (
                (self.attribute == "category" or "share" in self.aggregate) != bool(self.categories)
            ),
        }
        if said := [words for words, is_so in wrong.items() if is_so]:
            raise ValueError(f"kind {self.name}: {'; '.join(said)}")
        self.readings  # noqa: B018 - refuses what does not go together
        if self.role != "activity" and self.score == "auto":
            return self.model_copy(update={"score": "never"})
        return self

    @cached_property
    def readings(self) -> tuple[Value, ...]:
        """The values that are read of its events, in the order of a batch's columns."""
        if self.value is None:
            return self.values
        return (
            Value.model_validate({
                "name": "", "from": self.value, "noun": "value", "aggregate": self.aggregate,
                "categories": self.categories, "attribute": self.attribute,
            }),
        )  # fmt: skip

    @property
    def takes_text(self) -> bool:
        """May `value` be text? Where nothing reads a number there, and something reads text."""
        textual = [value.reads in TEXTUAL for value in self.readings]
        return any(textual) and not any(
            value.path == "value" and not text for value, text in zip(self.readings, textual, strict=True)
        )

    def said(self, n: float) -> str:
        """So many of them, to the nearest whole: '4 purchases', '1 purchase', or 'mailings: 1' with no word for one."""
        count = f"{n:,.0f}"
        if count != "1":
            return f"{count} {self.noun}"
        return f"1 {self.one}" if self.one else f"{self.noun}: 1"

    @property
    def counted(self) -> bool:
        """Are its events counted in windows?"""
        return self.features and self.role in ("activity", "contact")
