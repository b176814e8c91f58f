"""For every test."""

import torch
from hypothesis import settings

settings.register_profile("torchppo", derandomize=True, deadline=None)  # the same examples, however slow the machine
settings.load_profile("torchppo")
torch.set_num_threads(1)  # small networks lose most of their time to more, the more so beside another worker
