"""What trains: agents, prices, telemetry, checkpoints and the run folder. The bundled agents are imported here, and so are known by name."""

from agents.baselines import exits, gumbel, shallow, static
from agents.policy import ppo, reinforce

__all__ = ["exits", "gumbel", "ppo", "reinforce", "shallow", "static"]
