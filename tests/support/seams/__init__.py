"""Second real implementations of the protocols: sources, scorers, stores."""
