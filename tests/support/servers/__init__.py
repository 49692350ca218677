"""Real servers for tests, started once a session, and a proxy that breaks the way to them."""
