"""What trains: agents, prices, telemetry, checkpoints and the run folder. The bundled agents are imported here, and so are known by name."""

from agents.agent import AGENTS, Agent, AgentConfig, Results, TrainedRun
from agents.baselines import exits, gumbel, shallow, static  # noqa: F401
from agents.baselines.baseline import Baseline, Setting
from agents.options.config import ScheduleConfig, TrainConfig
from agents.policy.policy_agent import PolicyAgent, PolicyAgentConfig
from agents.policy.ppo import Ppo, PpoConfig
from agents.policy.reinforce import Reinforce, ReinforceConfig, reinforce_loss
from agents.run.learner import Learner
from agents.run.session import train
from agents.run.telemetry import rollout_metrics

__all__ = [
    "AGENTS",
    "Agent",
    "AgentConfig",
    "Baseline",
    "Learner",
    "PolicyAgent",
    "PolicyAgentConfig",
    "Ppo",
    "PpoConfig",
    "Reinforce",
    "ReinforceConfig",
    "Results",
    "ScheduleConfig",
    "Setting",
    "TrainConfig",
    "TrainedRun",
    "reinforce_loss",
    "rollout_metrics",
    "train",
]
