"""Where records live: the `Store` protocol, the checkpoint that fences every commit, the cache, and the
implementations.

What is stored for a partition is always exactly the state at its checkpoint.
"""
