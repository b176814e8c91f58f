"""Saving the state of environments and continuing from it."""
