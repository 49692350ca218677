"""From a fetched batch to an alert: transport, pipeline, batching, decisions. Start reading at `stream/pipeline.py`."""
