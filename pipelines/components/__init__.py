"""Builds the components of a configuration; `build.py` connects them."""
