"""Checks an environment and a policy before a training: `torchppo check`."""
