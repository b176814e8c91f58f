"""From observations to features: encoders, bodies and memories."""
