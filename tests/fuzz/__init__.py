"""A million malformed records and HTTP requests against the parser, a real worker and its HTTP face: `make fuzz`."""
