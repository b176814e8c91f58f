"""Reward models: intrinsic rewards for exploration."""
