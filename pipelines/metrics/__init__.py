"""Metrics that environments report, and support for callbacks that monitor metrics."""
