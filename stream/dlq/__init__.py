"""Dead dead letters sent back once their cause is mended."""
