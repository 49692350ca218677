"""Settings: their groups and defaults, the variables and files they come from, and secrets that no message quotes."""
