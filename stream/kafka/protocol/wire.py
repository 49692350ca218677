"""Kafka's types as aiokafka writes them, in both of its encodings."""

from aiokafka.protocol.types import CompactString, String

TEXT, COMPACT = String("utf-8"), CompactString("utf-8")
NO_TAGS: dict[int, bytes] = {}
