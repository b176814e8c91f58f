"""PPO objectives, one per file."""
