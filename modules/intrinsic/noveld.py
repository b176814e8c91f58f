"""NovelD: a bonus for crossing from known to novel observations."""

from __future__ import annotations

from typing import Any, ClassVar

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite

from ...errors import ConfigurationError
from .rnd import RND
from .streams import with_next
from .visits import EpisodeVisits


class NovelD(RND):
    """The bonus max(n(s') - alpha n(s), 0) at the first visit of s' in the episode, and 0 at all others.

    The novelty n is the square root of the prediction error of `RND`. Observations are compared exactly, so they must
    be able to repeat, such as those of grids.

    Source: Zhang et al. 2021 (NovelD, NeurIPS 2021), the criterion with the restriction to first visits in an episode.

    Args:
        observation_spec: See `RND`.
        alpha: Factor of the novelty of the current observation.
        is_episodic: See `RewardModel`. True, because the bonus starts again with every episode.
        options: See `RND`. The entries `observations` also decide whether a state is new.

    Raises:
        ConfigurationError: If an option is out of range or an entry does not exist.

    """

    stream: ClassVar[str] = "noveld"

    def __init__(
        self,
        observation_spec: Composite,
        *,
        alpha: float = 0.5,
        is_episodic: bool = True,
        **options: Any,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ConfigurationError(f"intrinsic.noveld.alpha={alpha} must be between 0 and 1; 0.5 is usual")
        super().__init__(observation_spec, is_episodic=is_episodic, **options)
        self.alpha = alpha
        self.visits = EpisodeVisits(self.observation_keys)

    def reward(self, rollout: TensorDictBase) -> Tensor:
        """Return the growth of novelty at first visits, `[num_envs, time, 1]`."""
        novelty, next_novelty = with_next(rollout, rollout["next", "done"], lambda data: self.error(data).sqrt())
        return (next_novelty - self.alpha * novelty).clamp(min=0) * self.visits.first_visits(rollout)
