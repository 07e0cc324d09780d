"""Self-imitation of random routes: its loss against a loop by hand, and what it finds that sampling does not."""

import pytest
import torch
from torch import Tensor, nn

from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.imitation import imitation_loss, imitation_weight
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.learner import Learner
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.reward import LINEAR
from rl_skip.core.routers import PolicyRouter
from rl_skip.core.task import Examples, Split, Task
from rl_skip.learning.prices import FixedPrice
from rl_skip.measure.evaluation import evaluate
from rl_skip.nets.module_stack import ModuleStack

DEPTH = 7


class CountOne(nn.Module):
    """Adds one to the last of the channels."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + nn.functional.one_hot(torch.tensor(hidden.shape[1] - 1), hidden.shape[1])


class OneLayerOrAll(Task):
    """A row is right where all layers ran; where one ran, every second row is; else none."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum(dim=1) * 0.0

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        count = outputs[:, -1].round()
        return ((count == DEPTH) | ((count == 1) & (labels == 1))).float()


def learner_of(updates: int, **options: float) -> Learner:
    def load(split: Split) -> Examples:
        return Examples(torch.randn(64, 4, generator=torch.Generator().manual_seed(len(split))), torch.arange(64) % 2)

    def embed(inputs: Tensor) -> Tensor:
        return torch.cat([inputs, torch.zeros(len(inputs), 1)], dim=1)

    class Embed(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return embed(inputs)

    stack = ModuleStack(Embed(), [CountOne() for _ in range(DEPTH)], nn.Identity(), width=5, layer_flops=[1e5] * DEPTH)
    stack.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    config = TrainConfig(
        policy=PolicyConfig(allow_exit=True, policy_hidden=32),
        pricing=PriceConfig(price=0.1),
        schedule=ScheduleConfig(warmup_epochs=0, epochs=updates, batch_size=64, policy_learning_rate=1e-2, tune="frozen"),
        agent_config=ReinforceConfig(baseline="value", **options),  # type: ignore[arg-type]
    )
    return Learner(config, OneLayerOrAll("one or all", ("a", "b"), load, nn.Identity, 1), torch.device("cpu"), stack=stack)


def test_the_loss_is_that_of_a_loop_by_hand() -> None:
    learner, price = learner_of(1), 0.1
    batch = learner.batch(0)
    routes = learner.random_routes(len(batch))
    loss = imitation_loss(learner, LINEAR, batch, torch.full((len(batch),), price), routes, learner.task.score)
    found = routed_forward(learner.stack, PolicyRouter(learner.policy, route=routes), batch.inputs, price=price, critic=learner.critic)
    total = 0.0
    for row, route in enumerate(routes.tolist()):
        score = float(sum(route) == DEPTH or (sum(route) == 1 and row_label(batch, row) == 1))
        for i, ran in enumerate(route[:-1]):
            if ran:
                after = found.spent[row, i + 1 :].sum().item()
                surprise = score - price * after - found.values[row, i].item()
                total -= found.log_probs[row, i].item() * max(surprise, 0.0)
    assert loss.item() == pytest.approx(total / len(batch), rel=1e-4)
    loss.backward()
    assert learner.policy.fc_out.weight.grad is not None
    assert all(parameter.grad is None for parameter in learner.critic.parameters())


def row_label(batch: Examples, row: int) -> int:
    return int(batch.labels[row])


@pytest.mark.parametrize(("weight", "layers"), [(0.0, 1), (0.3, DEPTH)])
def test_it_finds_the_long_route_that_alone_is_right(weight: float, layers: int) -> None:
    learner = learner_of(300, imitation_weight=weight, entropy_start=0.02)
    agent = Reinforce(learner, FixedPrice(0.1))
    for update in range(learner.updates):
        agent.update(update)
    found = evaluate(learner.stack, learner.policy, learner.task, learner.validation, price=0.1)
    assert found.route.sum(dim=1).tolist() == [layers] * 64


def test_its_weight_falls_to_nothing() -> None:
    assert [imitation_weight(0.3, progress) for progress in (0.0, 0.4, 0.8, 1.0)] == pytest.approx([0.3, 0.15, 0.0, 0.0])


def test_it_needs_the_critic() -> None:
    with pytest.raises(UserError, match="set --baseline value, or --imitation-weight 0"):
        ReinforceConfig(baseline="leave-one-out", imitation_weight=0.3)
