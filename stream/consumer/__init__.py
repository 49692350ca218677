"""The consumer group: Faust's worker and aiokafka's fetcher, made to hand over contiguous partition batches."""
