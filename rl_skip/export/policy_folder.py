"""The exported policy: a folder of safetensors and JSON that runs without anything that trained it."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rl_skip.core.batches import deployed
from rl_skip.core.clock import REPEATS
from rl_skip.core.costs import CostModel
from rl_skip.core.dial import Dial, Guarantee, PriceTable, checked_price
from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature, as_feature
from rl_skip.core.fields import is_ours
from rl_skip.core.files import atomic_replace
from rl_skip.core.finite import refuse_not_finite
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.inputs import Inputs, as_inputs, device_of, row_count
from rl_skip.core.kinds import kind_of
from rl_skip.core.measured_costs import MeasuredCosts
from rl_skip.core.policy import JumpPolicy, JumpRules
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.seal import SEAL, check_sealed, seal
from rl_skip.core.stack import LayerStack
from rl_skip.core.tracing import tracing
from rl_skip.core.tuning import Tuned, retuned, router_for, tune
from rl_skip.export.card import model_card
from rl_skip.export.description import Description
from rl_skip.export.weights import build, read_weights, save_weights

if TYPE_CHECKING:
    from rl_skip.nets.skip_layer import SkipLayer

__all__ = [
    "DESCRIPTION",
    "FILES",
    "LOADED",
    "MODEL",
    "POLICY",
    "READOUTS",
    "SkipModel",
    "copy_export",
    "load",
    "load_policy",
    "read_description",
    "save",
]

RIGHT_NETWORK = "the policy goes with the network that it was trained on"
DESCRIPTION, POLICY, MODEL, READOUTS, CARD = FILES = ("policy.json", "policy.safetensors", "model.safetensors", "readouts.safetensors", "README.md")
LOADED = tuple(name for name in FILES if name != CARD)
"""What is loaded of them: the card alone may be written later, on the hub for example."""
COST_TOLERANCE = 1e-4
TRAIN_ANEW = "train the policy anew with train.py"


class SkipModel(Dial, nn.Module):
    """A stack that runs under its policy: inputs → outputs, each row on its own route, the likeliest jump taken.

    Example:
        >>> from rl_skip import JumpPolicy, JumpRules, ModuleStack, ObservationLayout
        >>> layers = [nn.Linear(8, 8) for _ in range(4)]
        >>> stack = ModuleStack(nn.Linear(3, 8), layers, nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
        >>> model = SkipModel(stack, JumpPolicy(JumpRules.reaching(ObservationLayout(8, 4))), price=0.1)
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
        >>> model.last.route.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        stack: LayerStack,
        policy: JumpPolicy,
        *,
        price: float,
        table: PriceTable | None = None,
        guarantee: Guarantee | None = None,
        tuned: Sequence[Tuned] = (),
    ) -> None:
        super().__init__()
        self.stack, self.policy, self.table = stack, policy, PriceTable() if table is None else table
        self.price = price
        self.tuned = tuple(tuned)
        """How often the policy is asked, by batch size; see `tune`."""
        self.guarantee = guarantee
        """What is promised of its price, `guarantee.price`; of other prices nothing is."""
        self.last: Rollout | None = None
        """The last call's rollout, without its outputs and without gradients."""

    @property
    def processor(self) -> Any:
        """What makes the inputs of a model from transformers, such as a tokenizer; None: it is not known."""
        return getattr(self.stack, "processor", None)

    @property
    def rules(self) -> JumpRules:
        """What the policy may do and see."""
        return self.policy.rules

    def forward(self, inputs: Inputs | Mapping[str, Tensor]) -> Tensor:
        rows = as_inputs(inputs)
        if not tracing() and row_count(rows) == 0:
            raise UserError("a batch holds at least one row, and these inputs have none")
        rollout = routed_forward(self.stack, router_for(self.policy, self.tuned, row_count(rows)), rows, price=self.price)
        self.last = rollout.kept()
        return rollout.outputs

    def compile(self, *, layers: bool = False) -> None:
        """From now on, calls without gradients look and decide by one compiled function, to rounding as before.

        It is compiled when it is first needed, which takes a minute, for any number of rows. Copies of the policy decide without.

        Args:
            layers: whether each layer is compiled too.

        Raises:
            UserError: where there is no C++ compiler, or policy or layers cannot be compiled.
        """
        from rl_skip.core.compiled_decision import compile_policy  # the compiler's modules take long to import

        compile_policy(self.policy, self.stack, layers)

    def tune(self, inputs: Inputs | Mapping[str, Tensor], *, repeats: int = REPEATS) -> Tuned:
        """Measures on a batch, at the price that is set, whether the policy had better be asked less often at this size, and does so from now on.

        Args:
            inputs: of as many rows as will be run together.
            repeats: timed calls of each way to decide.

        Raises:
            UserError: if the inputs are neither a tensor nor a mapping of tensors.
        """
        rows = as_inputs(inputs)
        with deployed(self):
            found = tune(self.policy, lambda router: routed_forward(self.stack, router, rows, price=self.price).route, device_of(rows), repeats)
        self.tuned = retuned(self.tuned, found)
        return found


def save(
    folder: Path | str,
    model: "JumpPolicy | SkipLayer",
    *,
    stack: LayerStack | None = None,
    weights: bool = True,
    network: dict[str, Any] | None = None,
    price: float | None = None,
    price_table: PriceTable | Iterable[tuple[float, float, float]] = (),
    trained_on: dict[str, Any] | None = None,
    reward: Reward | str = LINEAR,
    guarantee: Guarantee | None = None,
    tuned: Sequence[Tuned] = (),
    overwrite: bool = False,
) -> None:
    """Writes an export, all of it or nothing.

    Args:
        folder: what to make; its parents are made too.
        model: the policy, or a `SkipLayer` with its policy inside.
        stack: what the policy was trained on; a `SkipLayer` is its own.
        weights: whether to write the stack's weights too. False for a pretrained network that its user has anyway.
        network: from `network_to_json`, with which `load` rebuilds the stack; without it, `load` needs the stack.
        price: the operating price, chosen on validation data; that of the `SkipLayer` by default.
        price_table: measured (price, compute, score) on validation data; dominated points are dropped.
        trained_on: task, rows, seed, agent and whatever else is worth knowing; plain JSON.
        reward: what the policy was rewarded for, or its formula alone, which stands in the model card.
        guarantee: what was promised of a price.
        tuned: how often the policy is asked, by batch size, as `SkipModel.tuned` has it.
        overwrite: replaces an export that exists.

    Raises:
        UserError: if the folder exists, or price or trained_on are invalid.
    """
    if not isinstance(model, JumpPolicy) and not isinstance(getattr(model, "policy", None), JumpPolicy):
        lacks = "what is exported is a JumpPolicy, whose network is fixed, or a SkipLayer with one"
        raise UserError(f"{lacks}, got a {type(model).__name__}; measure another agent with envs.evaluate(agent, run)")
    if isinstance(model, JumpPolicy):
        policy = model
    else:
        stack, policy, price = model, model.policy, model.price if price is None else price
    if stack is None or price is None:
        raise ValueError("a JumpPolicy is saved with the stack it was trained on and its price: save(folder, policy, stack=…, price=…)")
    _check_belongs(policy, stack)
    description = Description(
        rules=policy.rules,
        layer_costs=tuple(stack.layer_costs.tolist()),
        price=checked_price(price),
        table=price_table if isinstance(price_table, PriceTable) else PriceTable.monotone(price_table),
        trained_on=trained_on or {},
        reward=reward if isinstance(reward, str) else reward.formula,
        network=network or stack.described(),
        guarantee=guarantee,
        readouts=None if stack.readouts is None else stack.readouts.plan,
        costs=stack.costs if isinstance(stack.costs, MeasuredCosts) else None,
        tuned=tuple(tuned),
    )
    for name, module in (("policy", policy), ("network", stack)):
        refuse_not_finite(module, f"the {name} is not exported to {folder}", "train it anew, with a lower --learning-rate")

    def fill(new: Path) -> None:
        description.write(new / DESCRIPTION)
        save_weights(new / POLICY, policy.state_dict())
        if weights:
            save_weights(new / MODEL, stack.network_state())
        if stack.readouts is not None:
            save_weights(new / READOUTS, stack.readouts.state_dict())
        (new / CARD).write_text(model_card(description, weights), encoding="utf-8")
        seal(new)

    _write_folder(Path(folder), fill, overwrite)


def _check_belongs(policy: JumpPolicy, stack: LayerStack) -> None:
    """Refuses a policy for a stack of another shape, or with other readouts."""
    if (policy.rules.layout.depth, policy.rules.layout.width) != (stack.depth, stack.width):
        raise ValueError(f"the policy does not fit the stack of {stack.depth} layers of width {stack.width}")
    readout_flops = 0.0 if stack.readouts is None else stack.readouts.flops
    if policy.rules.layout.readout_flops != readout_flops or (stack.readouts is not None and not readout_flops):
        raise ValueError(
            f"the policy knows of readouts of {policy.rules.layout.readout_flops:g} operations, the stack's have {readout_flops:g}; count them, "
            "add_readouts(example), and give ObservationLayout readout_flops=stack.readouts.flops"
        )


def copy_export(
    source: Path, folder: Path, *, features: Sequence[Feature] = (), beside: Sequence[Path] = (), overwrite: bool = False
) -> None:
    """Copies an export after checking all of it that can be checked without its maker's code.

    Args:
        features: those of one's own that the policy sees.
        beside: folders that are copied into it, as they are.
    """
    if read_description(source, features).missing is None:
        load(source, features=features)
    else:
        load_policy(source, features)
    check_sealed(source, *LOADED, whole=True)

    def fill(new: Path) -> None:
        for name in (*FILES, SEAL):
            if (source / name).is_file():
                shutil.copyfile(source / name, new / name)
        for whole in beside:
            shutil.copytree(whole, new / whole.name)

    _write_folder(folder, fill, overwrite)


def _write_folder(folder: Path, fill: Callable[[Path], None], overwrite: bool) -> None:
    """Writes the folder; `overwrite` replaces nothing but another export."""
    if overwrite and (folder.is_symlink() or folder.exists()) and not is_ours(folder / DESCRIPTION, "depth", "max_jump", "layer_costs"):
        raise UserError(f"{folder} is not an exported policy, so it is not overwritten; name another folder")
    atomic_replace(folder, fill, overwrite=overwrite)


def read_description(folder: Path | str, features: Sequence[Feature] | None = ()) -> Description:
    """What an exported policy is; `features` are those of one's own that it may see, None: any, for a description that is not run.

    Raises:
        UserError: if there is no such folder, or its `policy.json` has a field that is missing or wrong, or is not as it was written.
    """
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}; name an exported policy, the folder with a {DESCRIPTION}")
    if not Path(folder, DESCRIPTION).is_file() and Path(folder, "policy", DESCRIPTION).is_file():
        raise UserError(f"{folder} is a run; name the policy in it, {Path(folder, 'policy')}")
    description = Description.read(Path(folder, DESCRIPTION), None if features is None else tuple(map(as_feature, features)))
    check_sealed(Path(folder), DESCRIPTION)
    return description


def load_policy(folder: Path | str, features: Sequence[Feature] = ()) -> JumpPolicy:
    """The exported policy alone, in evaluation mode; `features` are those of one's own that it may see.

    Raises:
        UserError: if a file is missing or not as it was written, a field is wrong, or the weights do not fit.
    """
    rules = read_description(folder, features).rules
    policy = build(Path(folder, POLICY), lambda: JumpPolicy(replace(rules)), DESCRIPTION)  # a copy, whose cached masks are on its own device
    refuse_not_finite(policy, Path(folder, POLICY), TRAIN_ANEW)
    check_sealed(Path(folder), POLICY)
    return policy


def load(
    folder: Path | str,
    stack: LayerStack | Path | str | None = None,
    *,
    price: float | None = None,
    budget: float | None = None,
    features: Sequence[Feature] = (),
    device: torch.device | str = "cpu",
) -> SkipModel:
    """An exported policy with its network, in evaluation mode.

    Args:
        folder: the export.
        stack: the network, for an export that does not describe it; takes the exported weights where there are any. A path: the
            folder `model` that a run of a model from transformers leaves beside its policy.
        price: the price λ that the policy sees; the export's own by default.
        budget: the mean compute allowed, in (0, 1], in place of the price.
        features: those of one's own that the policy sees; registered ones need not be named.
        device: where to run.

    Raises:
        UserError: if a file is missing or not as it was written, a field is wrong, the weights or the stack do not fit, or the budget is
            too small.
    """
    if price is not None and budget is not None:
        raise UserError("a price and a budget exclude each other; set one of --price and --budget")
    description, policy, file = read_description(folder, features), load_policy(folder, features), Path(folder, MODEL)
    if isinstance(stack, Path | str):
        stack = _read_model(description, Path(stack), folder)
    if stack is None:
        stack = _build_network(description, file)
    else:
        _check_fit(description, stack, folder)
        if file.is_file():
            state = read_weights(file, stack.network_state(), same_dtype=True)
            stack.load_state_dict(state, strict=False)
    _check_costs(description, stack, folder)
    _load_readouts(description, stack, Path(folder, READOUTS))
    refuse_not_finite(stack, folder, TRAIN_ANEW)
    check_sealed(Path(folder), *LOADED, whole=True)
    stack.take_policy(policy, description.price)
    operating = description.price if price is None else price
    stack.costs = CostModel() if description.costs is None else description.costs
    model = SkipModel(stack, policy, price=operating, table=description.table, guarantee=description.guarantee, tuned=description.tuned)
    if budget is not None:
        model.budget = budget
    return model.to(device).eval()


def _read_model(description: Description, model: Path, folder: Path | str) -> LayerStack:
    described = description.network
    kind = None if described is None else kind_of(described)
    if kind is None or described is None or kind.read_model is None:
        raise UserError(f"{Path(folder, DESCRIPTION)} describes no model with a folder of its own; give the stack itself, or leave {model} out")
    stack = kind.read_model(model, described)
    if kind.check_model is not None:
        kind.check_model(description, stack, Path(folder, DESCRIPTION))
    return stack


def _build_network(description: Description, file: Path) -> LayerStack:
    if (missing := description.missing) is not None:
        raise UserError(f"{file.parent} {missing}")
    network = description.network
    assert network is not None
    return build(file, lambda: kind_of(network).build(network), DESCRIPTION, lambda stack: stack.network_state())


def _load_readouts(description: Description, stack: LayerStack, file: Path) -> None:
    """Gives the stack the readouts that were trained with the policy; none where it has none."""
    flops = description.rules.layout.readout_flops
    if not flops:
        stack.readouts = None
        return
    plan = description.readouts or {}
    if stack.readouts is None or stack.readouts.plan != plan:
        stack.add_readouts(plan=plan)
    readouts = stack.readouts
    assert readouts is not None
    readouts.flops = flops
    readouts.load_state_dict(read_weights(file, readouts.state_dict()))


def _check_fit(description: Description, stack: LayerStack, folder: Path | str) -> None:
    layout = description.rules.layout
    for name, saved, given in (("depth", layout.depth, stack.depth), ("width", layout.width, stack.width)):
        if saved != given:
            raise UserError(f"{Path(folder, DESCRIPTION)}: {name} is {saved}, the given stack has {given}; {RIGHT_NETWORK}")


def _check_costs(description: Description, stack: LayerStack, folder: Path | str) -> None:
    for i, (saved, given) in enumerate(zip(description.layer_costs, stack.layer_costs.tolist(), strict=True)):
        if not abs(saved - given) <= COST_TOLERANCE:
            raise UserError(f"{Path(folder, DESCRIPTION)}: layer_costs[{i}] is {saved:.5f}, the network's is {given:.5f}; {RIGHT_NETWORK}")
