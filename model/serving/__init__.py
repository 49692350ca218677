"""A published version on disk, verified, loaded, compiled by XLA and swapped while it serves."""
