"""Rules that name what is wrong with a training, from its metrics."""
