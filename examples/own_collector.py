"""Your own way to make rollouts: collector=recorded keeps all that is experienced on disk, for offline learning.

A collector's `rollouts` is made from the environment, the policy and the number of steps; every call returns the next
rollout, `[num_envs, time]`. What is recorded is read again with `TensorDict.load_memmap(path)`.
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
        self.seconds: dict[str, float] = {}  # of parts of the time that collecting takes, if they are measured
        self.folder = Path(folder)
        self.number = count()
        self.rollouts = TorchRLRollouts(env, policy, num_steps)

    def __call__(self) -> TensorDictBase:
        rollout = self.rollouts()
        kept = rollout.select("observation", "action", "next")
        kept.memmap(self.folder / f"{next(self.number):06}", copy_existing=True)
        return rollout


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # collector/recorded.yaml names the class above
    sys.exit(main(["train", "experiment=cartpole", "collector=recorded", "--config-dir", str(conf), *sys.argv[1:]]))
