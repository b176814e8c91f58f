"""How a rollout becomes optimizer steps: epochs, minibatches, one step."""
