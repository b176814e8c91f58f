"""Action heads and value heads."""
