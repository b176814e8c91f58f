"""Vector environments that step in this process, in worker processes or in ale-py's threads."""
