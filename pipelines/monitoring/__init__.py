"""What the LightningModule offers to loggers, callbacks and evaluations of Lightning."""
