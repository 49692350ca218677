"""A customer who is several fields of an event together, such as a learner and a course: one text, and back.

    customer: [learner, course]     ann, m/1    ─▶    ann/m~11      first part: ann

Parts are joined by "/"; in a part "~" is written "~0" and "/" is written "~1", as in a JSON pointer (RFC 6901). So no
two lists of parts are the same text, a part is read as it is wherever it has neither, and whose text begins with a
first part and "/" is a customer of that first part, and nobody else is.

The Kafka key is such a text, too: the first part, or the whole. A tombstone of the whole forgets one customer; a
tombstone of the first part forgets all of that first part in its partition.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from ebbtide.featurestore.kinds import Frozen

SEPARATOR = "/"
FIELDS = ("user_id", "customer_2", "customer_3", "customer_4")
"""What the contract calls the fields that make a customer; where there is one, it is the first."""


class Composite(Frozen):
    """fields: where the parts lie in an event, as in a mapping. key: what the Kafka key is, and so its partition."""

    fields: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2, max_length=len(FIELDS))
    ]
    key: Literal["first", "whole"] = "first"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"customer: a field is named twice in [{', '.join(self.fields)}]")
        return self

    @property
    def in_contract(self) -> "Composite":
        """The same for events in the contract's own form."""
        return Composite(fields=FIELDS[: len(self.fields)], key=self.key)


def _of_list(said: Any) -> Any:
    return {"fields": said} if isinstance(said, list | tuple) else said


CompositeField = Annotated[Composite | None, BeforeValidator(_of_list)]
"""As a spec says it: a list of fields, or that and the key."""


def join(parts: Sequence[str]) -> str:
    """The customer of these parts."""
    return SEPARATOR.join([part.replace("~", "~0").replace(SEPARATOR, "~1") for part in parts])


def split(customer: str) -> list[str]:
    """The parts of a customer, or of a first part as it is written."""
    return [part.replace("~1", SEPARATOR).replace("~0", "~") for part in customer.split(SEPARATOR)]


def first_of(customer: str) -> str:
    """The first part, as it is written; of a first part itself."""
    return customer.partition(SEPARATOR)[0]


def first_parts(customers: Sequence[str], composite: Composite | None) -> Sequence[str]:
    """Of each customer the first part; of one who is no composite, all of the id. Customers of one first part are one
    person: a split of customers that is to judge on strangers keeps them together."""
    return customers if composite is None else [first_of(customer) for customer in customers]


def people(customers: Sequence[str], composite: Composite | None) -> NDArray[np.int32] | None:
    """int32[m]: of each customer the number of the person, equal where the first part is; None where no customer is
    composite, and each is a person. What one person does in two parts of a customer is not independent."""
    if composite is None:
        return None
    number: dict[str, int] = {}
    found = (number.setdefault(part, len(number)) for part in first_parts(customers, composite))
    return np.fromiter(found, np.int32, len(customers))
