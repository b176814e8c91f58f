"""Examples and help texts of the command line."""

EXAMPLES = """\
examples:
  torchppo train env=cartpole
  torchppo train experiment=cartpole
  torchppo train env.id=LunarLander-v3 total_frames=1_000_000
  torchppo train experiment=halfcheetah policy.body.num_cells=[256,256] -m seed=0,1,2
  torchppo train env.id=my_package:MyEnv-v0 --config-dir my_conf
  torchppo check env.id=my_package:MyEnv-v0
  torchppo resume runs/cartpole/<run>
  torchppo eval runs/cartpole/<run>/checkpoints/best.ckpt --json

Use env= or env.id= to choose only the environment, and experiment= for an environment with tuned settings.
"""
EVAL_EXAMPLES = """\
examples:
  torchppo eval runs/cartpole/<run>/checkpoints/best.ckpt --episodes 100 --stochastic
  torchppo eval best.ckpt --render human --episodes 3
  torchppo eval best.ckpt env.id=CartPole-v0 +env.max_episode_steps=1000
"""
TRUST_HELP = "a package that the checkpoint may name, such as a module of yours; once for each package"
