"""Stable-Baselines3's PPO (Schulman et al. 2017) on the jump policy, with supervised updates between its rollouts."""

import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

from agents.agent import AGENTS, Results, TrainedRun
from agents.policy.imitation import imitation_loss, imitation_weight
from agents.policy.policy_agent import PolicyAgent, PolicyAgentConfig
from agents.run.forecast import seconds_of
from agents.run.learner import Critic, Learner
from agents.run.moments import load_moments
from agents.run.telemetry import ENV_STEPS, rollout_metrics, score_metric
from envs import Price, SB3SkipVecEnv, SkipCore
from rl_skip.core.errors import UserError
from rl_skip.core.exits import exit_pass
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.progress import begin_stage
from rl_skip.core.routers import PolicyRouter
from rl_skip.learning.exact import entropy_weight
from rl_skip.learning.prices import BudgetPrice, PriceRange, PriceSource
from rl_skip.measure.every_price import leaves_only

__all__ = ["MaskablePpo", "Ppo", "PpoConfig", "actor_critic"]

ROLLOUTS = "rollouts on the finished network"


@dataclass(frozen=True)
class PpoConfig(PolicyAgentConfig):
    """PPO."""

    num_envs: int = 128
    """Inputs that pass the stack at once while PPO collects. More makes larger batches; 32 to 512."""
    steps: int = 16
    """Decisions of each of them between two trainings of PPO. More steadies the gradient and learns less often; 8 to 64."""
    minibatch: int = 512
    """Decisions of one gradient step of PPO; at most num_envs times steps."""
    passes: int = 4
    """Times that PPO goes over what it collected. More squeezes it harder; 2 to 10."""
    finished_rollouts: int = 40
    """Where rows can but leave: rollouts on the finished network, of the policy alone, after the training; 10 to 100."""
    gae_lambda: float = 0.95
    """1 trusts the rewards alone, lower trusts the critic more; 0.9 to 1."""
    clip_range: float = 0.2
    """How far one training may move the policy; 0.1 to 0.3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_envs", "steps", "minibatch", "passes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}; set --{name.replace('_', '-')}")
        if self.num_envs * self.steps % self.minibatch:
            raise UserError(f"{self.num_envs} x {self.steps} decisions do not divide into minibatches of {self.minibatch}; set --minibatch")
        if self.finished_rollouts < 0:
            raise UserError(f"finished_rollouts must be at least 0, got {self.finished_rollouts}; set --finished-rollouts")
        for name in ("gae_lambda", "clip_range"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in (0, 1], got {getattr(self, name)}; set --{name.replace('_', '-')}")


class _Heads(nn.Module):
    """The extractor of Stable-Baselines3: here it holds actor and critic whole."""

    latent_dim_vf = 1

    def __init__(self, policy: JumpPolicy, critic: Critic) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        self.latent_dim_pi = policy.rules.max_jump + 1

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(observation), self.forward_critic(observation)

    def forward_actor(self, observation: Tensor) -> Tensor:
        logits: Tensor = self.policy(observation)  # (R, J + 1), illegal jumps at -1e9
        return logits

    def forward_critic(self, observation: Tensor) -> Tensor:
        value: Tensor = self.critic(observation)
        return value.unsqueeze(1)


def actor_critic(base: type[ActorCriticPolicy] | type[MaskableActorCriticPolicy], policy: JumpPolicy, critic: Critic) -> type[ActorCriticPolicy]:
    """A policy class for Stable-Baselines3 whose actor is `policy` itself, not a copy, and whose critic is `critic`."""

    class JumpActorCritic(base):  # type: ignore[misc, valid-type]
        def _build_mlp_extractor(self) -> None:
            self.mlp_extractor = _Heads(policy, critic)

        def _build(self, lr_schedule: Schedule) -> None:
            super()._build(lr_schedule)
            self.action_net, self.value_net = nn.Identity(), nn.Identity()
            self.optimizer = self.optimizer_class(self.mlp_extractor.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    return JumpActorCritic


def _price(prices: PriceSource) -> Price:
    low, high = prices.range
    return low if low == high else (low, high)


class Ppo(PolicyAgent):
    """The agent: one rollout and one training of PPO once an epoch, or at every update of a frozen network; between them the network learns."""

    config_class = PpoConfig
    algorithm: ClassVar[type[PPO] | type[MaskablePPO]] = PPO
    actor: ClassVar[type[ActorCriticPolicy] | type[MaskableActorCriticPolicy]] = ActorCriticPolicy

    config: PpoConfig

    def __init__(self, learner: Learner, prices: PriceRange | BudgetPrice | None = None) -> None:
        super().__init__(learner, prices)
        config, prices = self.config, self.prices
        core = SkipCore(learner.stack, learner.rules, learner.train, self.score, num_envs=config.num_envs, price=_price(prices), reward=prices.reward)
        self.core, self.env = core, SB3SkipVecEnv(core)
        options: dict[str, Any] = {
            "n_steps": config.steps,
            "batch_size": config.minibatch,
            "n_epochs": config.passes,
            "gamma": 1.0,
            "gae_lambda": config.gae_lambda,
            "clip_range": config.clip_range,
            "normalize_advantage": False,
            "vf_coef": config.value_weight,
            "max_grad_norm": learner.config.schedule.max_grad_norm,
            "policy_kwargs": {"ortho_init": False},
        }
        policy = actor_critic(self.actor, learner.policy, learner.critic)
        self.model: PPO = self.algorithm(policy, VecMonitor(self.env), device=learner.device, **options)  # type: ignore[assignment, arg-type]
        torch.manual_seed(learner.config.seed)
        self.model.set_logger(Logger(folder=None, output_formats=[]))

    def update(self, update: int) -> dict[str, Tensor]:
        """One supervised update, and before the first of each epoch one rollout of PPO; returns metrics.

        Where the network is frozen every update has a rollout of PPO.
        """
        learner = self.learner
        learner.prepare(learns=False)
        first = (update - learner.warmup_updates) % learner.updates_per_epoch == 0
        metrics = self._improve_policy(update, learner.joint_progress(update)) if first or not learner.tunes else {}
        return metrics | self._improve_network(update)

    def finish(self, run: TrainedRun) -> Results:
        learner, rollouts = self.learner, self._finished_rollouts
        if rollouts > 0:
            begin_stage(ROLLOUTS)
            learner.prepare(learns=False)
            for n in range(rollouts):
                metrics = self._improve_policy(learner.updates + n, n / rollouts)
                self.show_finished(run, n, self._episodes(), metrics)
        return super().finish(run)

    def foreseen(self) -> dict[str, float]:
        parts, rollouts = super().foreseen(), self._finished_rollouts
        if rollouts == 0:
            return parts
        self.learner.prepare(learns=False)
        return {ROLLOUTS: rollouts * seconds_of(lambda: self._improve_policy(self.learner.updates, 0.0))} | parts

    def _episodes(self) -> dict[str, float]:
        """Means over the last hundred episodes that ended in the last rollout, and over all its decisions."""
        ended, entropy = list(self.model.ep_info_buffer or ()), -float(self.model.logger.name_to_value["train/entropy_loss"])
        means = {name: statistics.fmean(episode[key] for episode in ended) for name, key in (("ep_rew_mean", "r"), ("ep_len_mean", "l")) if ended}
        return {**means, "entropy": entropy}

    @property
    def env_steps(self) -> int:
        return self.model.num_timesteps

    @property
    def _finished_rollouts(self) -> int:
        learner = self.learner
        return self.config.finished_rollouts if leaves_only(learner.stack, learner.policy) and learner.tunes else 0

    def _improve_policy(self, update: int, progress: float) -> dict[str, Tensor]:
        """One rollout of PPO and its training, after a share `progress` of all that it will have."""
        learner, model = self.learner, self.model
        rate = learner.config.schedule.policy_learning_rate * (1 - 0.9 * progress)
        model.lr_schedule = lambda _remaining: rate
        model.ent_coef = entropy_weight(self.config, progress)
        self.core.price = _price(self.prices)
        self.env.seed(learner.config.seed * 1_000_003 + update)  # each rollout begins anew: nothing of the last one is needed to resume
        model._last_obs, model.ep_info_buffer = None, None
        model.learn(self.config.steps * self.config.num_envs, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        metrics = {name: torch.tensor(float(value)) for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
        metrics.pop("train/learning_rate", None)  # the network's is reported
        last = [parameter.grad for parameter in learner.policy.parameters() if parameter.grad is not None]  # of the last minibatch, clipped
        return metrics | {"train/policy_loss": metrics["train/policy_gradient_loss"], "train/policy_grad_norm": nn.utils.get_total_norm(last)}

    def _improve_network(self, update: int) -> dict[str, Tensor]:
        learner = self.learner
        rate, rows = learner.set_learning_rates(update), learner.batch_rows(update)
        batch = learner.train.take(rows)
        price = self.prices.draw(len(batch), learner.generator).to(learner.device)
        with torch.no_grad():
            route = routed_forward(learner.stack, PolicyRouter(learner.policy, sample=True), batch.inputs, price=price)
        outputs, loss = route.outputs, torch.zeros((), device=learner.device)
        if (weight := imitation_weight(self.config.imitation_weight, learner.joint_progress(update))) > 0:
            shown = self.prices.draw(len(batch), learner.generator).to(learner.device)
            loss = loss + weight * imitation_loss(learner, self.prices.reward, batch, shown, learner.random_routes(len(batch)), self.score)
        metrics = {"train/learning_rate": torch.tensor(rate)}
        if learner.tunes:
            learner.prepare(learns=True)
            if leaves_only(learner.stack, learner.policy):  # then one pass teaches every exit
                answers = exit_pass(learner.stack, learner.policy, batch.inputs, price).answers
                supervised = learner.exits_loss(batch, rows, answers)
            else:
                supervised, outputs = learner.network_loss(batch, rows, route.route)
            loss, metrics["train/supervised_loss"] = loss + supervised, supervised
        if loss.requires_grad:
            metrics["train/grad_norm"] = learner.descent.apply(loss)
        metrics |= score_metric(learner.task, "rollout", outputs, batch.labels)
        score = self.score(outputs, batch.labels)
        self.prices.observe(route.compute.mean())
        return rollout_metrics(route, score.detach(), price, self.prices.reward, learner.rules) | metrics

    def state_dict(self) -> dict[str, Any]:
        """What PPO needs beside the learner to go on: its optimiser and its count of updates."""
        model = self.model
        own = {"optimizer": model.policy.optimizer.state_dict(), "updates": model._n_updates}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        load_moments(self.model.policy.optimizer, state["optimizer"])
        self.model.num_timesteps, self.model._n_updates = state[ENV_STEPS], state["updates"]


class MaskablePpo(Ppo):
    """PPO of sb3-contrib, which masks illegal jumps."""

    algorithm = MaskablePPO
    actor = MaskableActorCriticPolicy


AGENTS.register("ppo", Ppo)
AGENTS.register("maskable-ppo", MaskablePpo)
