"""The factory: from an event log to an evaluated, published version."""
