"""Networks, heads, normalizers, objectives and schedules, which depend only on PyTorch and TorchRL."""
