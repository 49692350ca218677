"""State made beside the worker: from a file (backfill), or from the log under a new prefix (rebuild)."""
