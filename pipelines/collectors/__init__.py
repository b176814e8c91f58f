"""Collectors: from an environment and a policy to rollouts."""
