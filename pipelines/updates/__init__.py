"""From one rollout to a better policy."""
