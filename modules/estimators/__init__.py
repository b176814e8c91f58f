"""Estimators of advantages and value targets that TorchRL lacks."""
