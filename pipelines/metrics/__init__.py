"""Metrics of environments, and the callbacks that monitor metrics."""
