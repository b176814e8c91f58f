"""A custom way to collect rollouts: save every rollout to disk, for example for offline learning.

`Collector(rollouts=...)` accepts a factory that is called with the environment, the policy and the number of steps.
Each call of the object that it returns collects the next rollout, a TensorDict `[num_envs, time]`. Read the saved
rollouts with `TensorDict.load_memmap(path)`.

    python examples/own_collector.py
"""

import sys
from itertools import count
from pathlib import Path

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.torchrl import TorchRLRollouts


class RecordedRollouts:
    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, num_steps: int, *, folder: str) -> None:
        self.seconds: dict[str, float] = {}  # time spent in parts of the collection; may stay empty
        self.folder = Path(folder)
        self.numbers = count()
        self.rollouts = TorchRLRollouts(env, policy, num_steps)

    def __call__(self) -> TensorDictBase:
        rollout = self.rollouts()
        saved = rollout.select("observation", "action", "next")
        saved.memmap(self.folder / f"{next(self.numbers):06}", copy_existing=True)
        return rollout


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains collector/recorded.yaml, which names RecordedRollouts
    sys.exit(main(["train", "experiment=cartpole", "collector=recorded", "--config-dir", str(conf), *sys.argv[1:]]))
