"""The score topic's record: the latest score of a customer, compacted by key. Written only where it is configured."""

from typing import Any, NamedTuple

import numpy as np
import orjson

from ebbtide.stream.outputs.message import Message


class ScoreRecord(NamedTuple):
    """One scored decision point. `p`: the float32 the model gave, exactly; `as_of`: ms UTC."""

    customer: str
    as_of: int
    cause: str
    p: float
    version: int
    partition: int
    offset: int


def score_message(
    topic: str,
    customer: str,
    as_of: int,
    cause: str,
    p: np.float32,
    version: int,
    partition: int,
    offset: int,
) -> Message:
    """The record as a message. A float32 widened to double prints all its digits, so it reads back to the same bits."""
    record = ScoreRecord(customer, as_of, cause, float(p), version, partition, offset)
    return Message(topic, customer.encode(), orjson.dumps(record._asdict()))


def read_score(value: bytes) -> ScoreRecord:
    """The record of a message's value. Raises ValueError (orjson's, or a missing field) when it is none of ours."""
    data: dict[str, Any] = orjson.loads(value)
    try:
        return ScoreRecord(**data)
    except TypeError as error:
        raise ValueError(f"not a score record: {error}") from None
