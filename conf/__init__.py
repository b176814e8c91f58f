"""Hydra's configuration groups, one folder for every part that can be swapped."""
