"""The configuration keys: their types, ranges and meanings, and the checks of a configuration."""
