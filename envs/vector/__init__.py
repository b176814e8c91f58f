"""Vector environments: one process, several, or ale-py's threads."""
