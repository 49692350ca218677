"""The image and what it is made of: its Dockerfile, its locked requirements, what is taken out, what is inside."""
