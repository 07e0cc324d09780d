"""What trains: agents, prices, telemetry, checkpoints and the run folder. The bundled agents are imported here, and so are known by name."""

from agents.agent import AGENTS, Agent, AgentConfig
from agents.baselines import exits, gumbel, shallow, static  # noqa: F401
from agents.baselines.baseline import Baseline, Setting
from agents.options.config import ScheduleConfig, TrainConfig
from agents.policy.policy_agent import PolicyAgent, PolicyAgentConfig
from agents.policy.ppo import Ppo, PpoConfig
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.session import train

__all__ = [
    "AGENTS",
    "Agent",
    "AgentConfig",
    "Baseline",
    "PolicyAgent",
    "PolicyAgentConfig",
    "Ppo",
    "PpoConfig",
    "Reinforce",
    "ReinforceConfig",
    "ScheduleConfig",
    "Setting",
    "TrainConfig",
    "train",
]
