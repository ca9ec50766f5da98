"""Images of tasks: read from files and rows, known by their pixels."""
