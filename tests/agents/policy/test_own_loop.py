"""A person's own loop and `train.py` learn the same from the same batch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.policy_agent import PolicyAgentConfig
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.learner import Learner
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks.options import leaving_defaults, model_defaults
from tests.rl_skip.huggingface_models import DEPTH, VOCABULARY, WIDTH, build

ROWS, PRICE = 8, 0.2


def load(split: Split) -> Examples:
    generator = torch.Generator().manual_seed(len(split))
    ids = torch.randint(3, VOCABULARY, (ROWS, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    return Examples({"input_ids": ids, "attention_mask": mask}, torch.arange(ROWS) % 2)


def model_of(state: dict[str, Tensor] | None = None) -> nn.Module:
    model = build("bert")
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    if state is not None:
        model.load_state_dict(state)
    return model


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("pricing", [{"price": PRICE}, {"budget": 0.5}])
def test_an_update_has_the_gradients_of_train_py(pricing: dict[str, float], fresh: bool) -> None:
    """Network, readouts and policy; with in-place distillation, since no warm-up has made a teacher."""
    schedule = ScheduleConfig(warmup_epochs=1, epochs=4, batch_size=ROWS)
    config = TrainConfig(
        network=NetworkConfig(DEPTH, WIDTH, heads=1),
        policy=PolicyConfig(readouts=True, jumps=False),
        pricing=PriceConfig(**pricing),  # type: ignore[arg-type]
        schedule=schedule,
        agent_config=ReinforceConfig(policy_epochs=0),
    )
    task = Task("tiny", ("no", "yes"), load, embedding=nn.Identity, tokens=7)
    stack = rl_skip.HuggingFaceStack(model_of())
    stack.fresh = ("classifier.weight", "classifier.bias") if fresh else ()
    learner = Learner(config, task, torch.device("cpu"), stack)
    for parameter in learner.stack.readouts.parameters():  # type: ignore[union-attr]
        parameter.data += 0.1 * torch.randn(parameter.shape)  # adapters begin as 0
    agent, gradients = Reinforce(learner), {}
    begun = {"policy": copy.deepcopy(learner.policy.state_dict()), "readouts": copy.deepcopy(learner.stack.readouts.state_dict())}  # type: ignore[union-attr]
    prices: list[Tensor] = []
    draw = agent.prices.draw
    agent.prices.draw = lambda *args: prices.append(draw(*args)) or prices[-1]  # type: ignore[method-assign, func-returns-value]

    def keep(_loss: Tensor) -> Tensor:
        gradients.update({name: parameter.grad for name, parameter in learner.stack.model.named_parameters()})  # type: ignore[operator, union-attr]
        gradients.update({f"readouts.{name}": parameter.grad for name, parameter in learner.stack.readouts.named_parameters()})  # type: ignore[union-attr]
        gradients.update({f"policy.{name}": parameter.grad for name, parameter in learner.policy.named_parameters()})
        return torch.zeros(())

    learner.descent.step = keep  # type: ignore[assignment, method-assign]
    update = learner.warmup_updates
    metrics = agent.update(update)

    model, batch = model_of(), learner.batch(update)
    handle = rl_skip.attach(model, rl_skip.SkipConfig(fresh_head=fresh or None, **pricing), example=batch.inputs)  # type: ignore[arg-type]
    handle.policy.load_state_dict(begun["policy"])  # type: ignore[union-attr]
    handle.stack.readouts.load_state_dict(begun["readouts"])  # type: ignore[union-attr]
    handle.deciding.prices.draw = lambda *_: prices[0]  # type: ignore[attr-defined, method-assign]
    model.train()
    handle.loss(model(**batch.inputs), batch.labels, progress=learner.joint_progress(update)).backward()  # type: ignore[attr-defined]

    mine = {name.replace("rl_skip.", "").replace("deciding.", ""): parameter.grad for name, parameter in model.named_parameters()}
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    read = handle.metrics()  # type: ignore[attr-defined]
    for name in metrics.keys() & read.keys():
        assert read[name] == pytest.approx(metrics[name].item(), rel=1e-4, abs=1e-6), name
    assert handle.price == pytest.approx(agent.prices.validation_price)


def test_what_is_not_said_is_as_the_commands_defaults_are() -> None:
    """Those of a policy that goes on or leaves, on a model from transformers."""
    ours, theirs = rl_skip.SkipConfig(), {}
    for group in (ScheduleConfig(), PriceConfig(), ReinforceConfig(), PolicyAgentConfig(), PolicyConfig()):
        theirs.update(vars(group))
    differing = {name for name, value in vars(ours).items() if name in theirs and theirs[name] != value and name != "reward"}
    assert differing == {"price_range", "head_rate"}
    given: dict[str, Any] = {"model": "any"}
    said = leaving_defaults(given) | model_defaults(given)
    assert (ours.price_range, ours.head_rate, ours.policy_learning_rate) == (said["price_range"], said["head_rate"], said["policy_learning_rate"])
