"""Hydra configuration groups, one folder for each replaceable component."""
