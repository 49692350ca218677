"""The page at `/`: what a worker does now, for people. One file, no build step, nothing from elsewhere."""
