"""What is learned from: labelled points of a log's replay, drawn, weighted and split in time."""
