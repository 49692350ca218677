"""Exactly once: what a partition says and how far it is, in one transaction of Kafka, fenced by its next owner."""
