"""A custom memory between the body and the heads: exponential moving averages of the features.

A memory processes single steps and whole sequences with the same call; see `torchppo.modules.features.recurrent`.

    python examples/own_memory.py
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from torchppo.modules.features.recurrent import Memory
from torchppo.pipelines.cli.main import main


class Traces(Memory):
    """Exponential moving averages of the features, one for each decay; together they are the recurrent state."""

    decays: Tensor
    context_length = 1  # a step needs only the state of the previous step

    def __init__(self, num_inputs: int, *, decays: list[float]) -> None:
        super().__init__()
        self.register_buffer("decays", torch.tensor(decays).repeat_interleave(num_inputs), persistent=False)
        self.state_size = num_inputs * len(decays)
        self.num_features = num_inputs + self.state_size

    def forward(self, features: Tensor, is_init: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        repeats = self.state_size // features.shape[-1]
        state, states = context[:, 0], []
        for inputs, reset in zip(features.unbind(1), is_init.unbind(1), strict=True):
            previous = state.masked_fill(reset, 0.0)  # a new episode starts from zeros
            state = torch.lerp(inputs.repeat(1, repeats).to(previous.dtype), previous, self.decays)
            states.append(state)
        return torch.cat([features, torch.stack(states, 1)], -1), state.unsqueeze(1)


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains memory/traces.yaml, which names Traces
    overrides = ["experiment=cartpole_positions", "policy=mlp", "memory=traces"]
    sys.exit(main(["train", *overrides, "--config-dir", str(conf), *sys.argv[1:]]))
