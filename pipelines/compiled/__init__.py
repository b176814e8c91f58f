"""Optional acceleration: policy and optimizer steps as traced or compiled graphs."""
