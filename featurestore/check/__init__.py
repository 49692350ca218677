"""What of a log does not fit a spec, said in words to somebody who knows their data and not our code."""
