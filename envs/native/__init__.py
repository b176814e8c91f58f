"""Batches of environments that step themselves, such as Gymnasium's vector environments, EnvPool and ale-py."""
