"""A real log through the whole service under the log's own clock, and the figures of it."""
