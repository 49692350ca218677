"""Load at a rate that does not depend on how the service feels, and what became of it."""
