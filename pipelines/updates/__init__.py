"""Updates, which train the networks on one rollout, and the eager optimizer step."""
