"""What a turn is made of: a partition's state and checkpoint, what waits in it, and the work that is taken from all.

The turn itself is `stream/pipeline.py`; who takes part in it is decided in `stream/schedule.py`.
"""
