"""Optional acceleration: steps as graphs."""
