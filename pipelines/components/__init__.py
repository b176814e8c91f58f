"""Builds the components of a configuration, which `build.py` connects."""
