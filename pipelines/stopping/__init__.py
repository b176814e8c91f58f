"""Ends processes after a signal. Importing `processes` and `signals` does not import PyTorch."""
