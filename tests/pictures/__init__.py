"""Pictures of the worker's page, for the documents."""
