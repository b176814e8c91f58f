"""Collectors: they run a policy in an environment and return rollouts."""
