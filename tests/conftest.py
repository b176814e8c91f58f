"""For every test."""

import torch

torch.set_num_threads(1)  # small networks lose most of their time to more, the more so beside another worker
