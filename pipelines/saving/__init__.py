"""Checkpoints of a training: what they contain, and how they are written to files."""
