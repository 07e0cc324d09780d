"""The handle of a policy that is attached to a model: its price and budget, how it is tuned, compiled and saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.flops import LayerFlops
from rl_skip.attached.hub import push
from rl_skip.attached.identity import identity, learned_identity, mark_of
from rl_skip.attached.returns import Form
from rl_skip.attached.routed_calls import RoutedCalls
from rl_skip.core.batches import deployed
from rl_skip.core.clock import REPEATS
from rl_skip.core.dial import PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.measured_costs import MeasuredCosts
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.readouts import Readouts
from rl_skip.core.reward import LINEAR
from rl_skip.core.routing import Router
from rl_skip.core.tuning import Tuned, retuned, tune
from rl_skip.export.policy_folder import save

__all__ = ["Handle"]


class Handle(RoutedCalls):
    """A policy attached to a model, made by `rl_skip.attach`. The model stays the object that it was.

    Attention weights (`output_attentions`) are zeros for rows that skipped a layer. `LearningHandle` is one whose policy learns.

    Args:
        model: the model.
        layers: the L layers that rows may skip.
        path: where in the model they are.
        width: D; None: as wide as the first call shows.
        flops: operations of the layers; None: counted on the first call.
        policy: the policy; None: all layers run unless a route is forced.
        price: the price λ that the policy sees, in score per unit of relative compute.
        table: which price led to which compute.
        channel_dim: where the D channels of the hidden state are.
        prompt_tokens: how many real tokens, from the first, a decision may look at; None: all that are there when the
            route is chosen.
        form: what each part of what a layer returns is; None: as is known of its class.
        readouts: what answers rows that leave early; None: what the model does after its last layer.
        prefix: where in `model`, around which adapters may have been put, the model is that the policy was trained on; it ends with a dot.
        trained_on: what the policy was trained on; plain JSON.
        reward: what it was rewarded for, in words.
        costs: by which compute is a share of time; None: it is one of operations.
        tuned: how often the policy is asked, by batch size.
        learned_with: a few numbers of each weight of the model that the policy learned with, as its identity has them.
    """

    processor: Any = None
    """What makes the model's inputs, such as a tokenizer; it goes to the hub with the model."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        path: str,
        *,
        width: int | None,
        flops: LayerFlops | None,
        policy: JumpPolicy | None,
        price: float = 0.0,
        table: PriceTable | None = None,
        channel_dim: int = -1,
        prompt_tokens: int | None = None,
        form: Form | None = None,
        readouts: Readouts | None = None,
        prefix: str = "",
        trained_on: dict[str, Any] | None = None,
        reward: str = LINEAR.formula,
        costs: MeasuredCosts | None = None,
        tuned: Sequence[Tuned] = (),
        learned_with: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__(
            model,
            layers,
            path,
            width=width,
            flops=flops,
            policy=policy,
            channel_dim=channel_dim,
            form=form,
            readouts=readouts,
            prefix=prefix,
        )
        self.prefix, self.trained_on = prefix, trained_on or {}
        self.table = PriceTable() if table is None else table
        self.price = price
        self.reward, self.form = reward, form
        self.stack.prompt_tokens = prompt_tokens
        if costs is not None:
            self.stack.costs = costs
        self.tuned = tuple(tuned)
        self._learned_with, self._mark = learned_with, mark_of(model)
        self.install()

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Writes the policy, what it belongs to, its table and a model card; `rl_skip.attach(model, folder)` takes it up again.

        Args:
            folder: what to make.
            overwrite: replaces an exported policy that is there.

        Raises:
            UserError: if there is no policy, the folder exists, or the cost of the layers was not counted yet.
        """
        if self.policy is None:
            raise UserError("no policy is attached, so there is nothing to save; attach(model, policy)")
        if self.flops is None:
            raise UserError("the cost of the layers is not known before the first call: call the model once, then save")
        self.stack.layer_flops = self.flops.nominal()
        save(
            folder,
            self.policy,
            stack=self.stack,
            weights=False,
            network=self._identity(),
            price=self.price,
            price_table=self.table,
            trained_on=self.trained_on,
            reward=self.reward,
            tuned=self.tuned,
            overwrite=overwrite,
        )

    def _identity(self) -> dict[str, Any]:
        """Which model the policy is saved for."""
        found = identity(self.model, self.path.removeprefix(self.prefix), self.stack.channel_dim, self.stack.prompt_tokens, self.form)
        samples = self._samples()
        return found if samples is None else learned_identity(found, samples, self._mark)

    def _samples(self) -> dict[str, list[float]] | None:
        """Of the weights that the policy learned with; None: it did not learn with a model that learned too."""
        return self._learned_with

    def tune(self, example: Mapping[str, Any] | Tensor, *, repeats: int = REPEATS) -> Tuned:
        """Measures on a batch, at the price that is set, whether the policy had better be asked less often at this size, and does so from now on.

        Below the size at which asking it for each row after every layer pays, it is asked after every other layer, or once for the batch, or
        everything runs: whichever is fastest. No way passes over more layers at once than the policy would for any row of the batch. What is found
        is saved with the policy, and its model card says it; batches of other sizes follow the largest tuned size that is not larger, or else the
        smallest. A way that passes over fewer layers spends more than the budget. `handle.tuned = ()` forgets it.

        Args:
            example: the model's arguments by name, or its first, for as many rows as will be run together.
            repeats: timed calls of each way.

        Raises:
            UserError: if no policy is attached, the handle is disabled, or the example is no tensor and no mapping.
        """
        if self.policy is None or not self._enabled:
            raise UserError("there is no policy to tune: attach(model, policy), and call handle.tune outside of handle.disabled()")
        if not isinstance(example, Tensor | Mapping):
            raise UserError(f"an example is the model's arguments by name, or its first, a tensor; got a {type(example).__name__}")

        def run(router: Router) -> Tensor:
            self._tried = router
            _ = self.model(example) if isinstance(example, Tensor) else self.model(**example)
            return self.last_routes

        try:
            with deployed(self.model):
                device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
                found = tune(self.policy, run, device, repeats)
        finally:
            self._tried = None
        self.tuned = retuned(self.tuned, found)
        return found

    def compile(self, *, layers: bool = False) -> None:
        """From now on, calls without gradients decide by one compiled function, to rounding as before. See `SkipModel.compile`.

        Args:
            layers: whether each layer is compiled too.

        Raises:
            UserError: if no policy is attached; where there is no C++ compiler, or the policy cannot be compiled.
        """
        if self.policy is None:
            raise UserError("there is no policy to compile: attach(model, policy)")
        from rl_skip.core.compiled_decision import compile_policy  # the compiler's modules take long to import

        compile_policy(self.policy, self.stack, layers)

    def model_weights(self) -> dict[str, Any]:
        """The model's weights by their names, without what the handle has added to it."""
        return self.model.state_dict()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        include_model: bool = True,
    ) -> str:
        """Writes policy and model to the Hugging Face hub; `rl_skip.from_pretrained(repo_id)` loads both, and transformers the model.

        Args:
            repo_id: owner/name; it is made where it is missing.
            commit_message: of the commit.
            commit_description: of the commit.
            private: whether a repository that is made is private; None: as its owner's default is.
            token: of the hub; None: the one of `hf auth login`.
            revision: the branch to write to; it is made where it is missing.
            create_pr: opens a pull request instead.
            include_model: whether the model goes along, with `processor`. Without it, the policy names the model that it was trained for, as an
                adapter of peft does: for a model that the hub has as it is.

        Returns:
            The address of the commit.

        Raises:
            UserError: as `save_pretrained`; or if the model cannot be written, or the hub refuses.
        """
        options = {"commit_description": commit_description, "private": private, "token": token, "revision": revision, "create_pr": create_pr}
        return push(self, repo_id, include_model=include_model, commit_message=commit_message, **options)
