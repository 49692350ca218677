"""Event files as whole logs of columns: CSV, JSON Lines and Parquet in arrival order, and back into the stream they
were.

No row is skipped in silence.
"""
