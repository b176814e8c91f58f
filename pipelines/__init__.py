"""What runs: collectors, the LightningModule, training, evaluation, the command line."""
