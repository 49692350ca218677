"""Run it, watch it, drill it: settings, command line, metrics, HTTP, the local stack, the simulator."""
