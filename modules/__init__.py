"""Networks, heads, normalizers, objectives and controllers, which depend only on PyTorch and TorchRL."""
