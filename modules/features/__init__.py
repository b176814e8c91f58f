"""Feature extractors: encoders, bodies and memories."""
