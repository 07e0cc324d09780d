"""What trains: agents, prices, telemetry, checkpoints and the run folder. The bundled agents are imported here, and so are known by name."""

from agents import exits, gumbel, ppo, reinforce, shallow, static

__all__ = ["exits", "gumbel", "ppo", "reinforce", "shallow", "static"]
