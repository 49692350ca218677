"""The worker process, put together and taken apart again in order."""
