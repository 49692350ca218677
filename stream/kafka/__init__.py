"""Kafka apart from the consumer group: settings, security, topics, the producer, and logs read from end to end.

Every error of the client library leaves as one of `stream/errors.py`.
"""
