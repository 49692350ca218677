"""What a model is made of and how its parts are fitted: examples in, weights and numbers out; no log, no files."""
