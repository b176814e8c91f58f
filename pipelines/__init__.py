"""Collectors, updates, the LightningModule, training, evaluation and the command line."""
