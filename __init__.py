"""PPO as interchangeable parts on TorchRL, Lightning and Hydra."""

__version__ = "0.1.0"
