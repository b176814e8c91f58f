"""Your own memory between body and heads: memory=traces remembers decaying averages of the features.

A memory is a module of one call, for one step and for whole sequences alike (see torchppo/modules/memories.py).
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from torchppo.modules.features.recurrent import Memory
from torchppo.pipelines.cli.main import main


class Traces(Memory):
    """Exponential moving averages of the features, one for every decay; a record is all of them."""

    decays: Tensor
    context_length = 1  # every step needs the record before it, no older ones

    def __init__(self, num_inputs: int, *, decays: list[float]) -> None:
        super().__init__()
        self.register_buffer("decays", torch.tensor(decays).repeat_interleave(num_inputs), persistent=False)
        self.state_size = num_inputs * len(decays)
        self.num_features = num_inputs + self.state_size

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        repeats = self.state_size // features.shape[-1]
        tape = [past[:, 0]]
        for now, begins in zip(features.unbind(1), is_init.unbind(1), strict=True):
            before = tape[-1].masked_fill(begins, 0.0)  # nothing of the last episode is remembered
            tape.append(torch.lerp(now.repeat(1, repeats).to(before.dtype), before, self.decays))
        records = torch.stack(tape, 1)
        return torch.cat([features, records[:, 1:]], -1), records


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # memory/traces.yaml names the class above
    words = ["experiment=cartpole_positions", "policy=mlp", "memory=traces"]
    sys.exit(main(["train", *words, "--config-dir", str(conf), *sys.argv[1:]]))
