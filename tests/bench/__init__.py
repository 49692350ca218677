"""What things cost: `make bench` (`__main__.py`), and a bench for each part that was chosen by measuring it."""
