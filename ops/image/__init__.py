"""What the image is made of: its locked requirements, what is taken out, what is inside."""
