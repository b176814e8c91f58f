"""Gymnasium spaces as TorchRL specs and NumPy arrays."""
