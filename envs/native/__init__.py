"""Vector environments that step all environments with one call: those of Gymnasium, EnvPool and ale-py."""
