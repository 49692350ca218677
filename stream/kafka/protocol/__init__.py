"""What we ask Kafka that aiokafka has no question for, or whose answer it does not read whole: requests of our own, on
its client. They know Kafka's numbers and refuse to say who needs which answer.
"""
