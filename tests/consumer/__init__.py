"""A consumer of alerts as another team would write it: a Kafka client that is not ours, our published schema, no code
of ours. `tests/integration/test_consumer.py` runs it against a real broker.
"""
