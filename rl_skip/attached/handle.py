"""The handle of a policy that is attached to a model: what it does now, what it did last, and how to detach it."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.answering import AnsweringStack, Beside
from rl_skip.attached.caches import check_forced, check_off, fill_caches, keep_route, kept_route, routable
from rl_skip.attached.called import CalledCarry, CalledStack
from rl_skip.attached.calls import LayerCall, real_tokens
from rl_skip.attached.checkpointing import check_first_time, outside_checkpoint, run_checkpointed
from rl_skip.attached.collected import Collected, refuse_collecting
from rl_skip.attached.finding import depth_of
from rl_skip.attached.flops import LayerFlops, counted_flops
from rl_skip.attached.hub import push
from rl_skip.attached.identity import identity
from rl_skip.attached.returns import Form
from rl_skip.attached.stand_in import StandIn, install, remove
from rl_skip.core.batches import deployed
from rl_skip.core.clock import REPEATS
from rl_skip.core.dial import Dial, PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.measured_costs import MeasuredCosts
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.readouts import Readouts
from rl_skip.core.reward import LINEAR
from rl_skip.core.routers import FixedRoute
from rl_skip.core.routing import Router, RoutingState
from rl_skip.core.tracing import ONE_ROUTE, tracing
from rl_skip.core.tuning import Tuned, retuned, router_for, tune
from rl_skip.export.policy_folder import save

__all__ = ["Handle", "RoutedForward"]


class RoutedForward(StandIn):
    """What stands in the place of a layer's `forward` while a policy is attached."""

    handle: "Handle"

    def __init__(self, handle: "Handle", index: int, layer: nn.Module) -> None:
        super().__init__(handle, layer, f"layer {index}")
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.handle.routing:
            check_off((*args, *kwargs.values()))
            return self.original(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            from rl_skip.attached.compiled import call_layer

            return call_layer(self, args, kwargs)
        if tracing():
            if not self.handle.takes_fixed(args, kwargs):
                raise UserError(ONE_ROUTE)
            return self.handle.run_fixed(self.index, args, kwargs)
        with outside_checkpoint(self.module):
            return self.handle.call_layer(self.index, args, kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer."""
        return run_checkpointed(self.module, self.original, args, kwargs)


class _Progress(threading.local):
    """How far a call of the model has come; each thread that calls it has its own."""

    state: RoutingState | None = None
    router: Router | None = None
    at = -1
    """The last layer that was called."""
    collected: Collected
    """What transformers collects inside the layers."""


@dataclass
class Turn:
    """What happens at one layer while the model is called."""

    index: int
    """i, the layer."""
    state: RoutingState
    rows: Tensor | None
    """(R,), the rows that run it; None where there are none."""
    args: tuple[Any, ...] = ()
    """What the layer is called with for these rows, by position,"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """and by name."""


class Handle(Dial):
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
    """

    learns = False
    """Whether the policy, and the readouts, learn while they are attached."""
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
    ) -> None:
        self.model, self.path, self.policy, self.trained_on = model, path, policy, trained_on or {}
        self.prefix = prefix
        self.table = PriceTable() if table is None else table
        self.price = price
        self.flops, self.reward, self.form = flops, reward, form
        self._configured_depth = depth_of(model, path)
        routed = [RoutedForward(self, i, layer) for i, layer in enumerate(layers)]
        options: dict[str, Any] = {"width": width or 0, "forwards": [one.run for one in routed], "channel_dim": channel_dim, "form": form}
        self._stand_ins: list[StandIn] = [*routed]
        if readouts is None:
            self.stack = CalledStack(layers, **options)
        else:
            looks = self.learns or (policy is not None and policy.rules.layout.reads)
            answering = AnsweringStack(layers, model=model, path=path, readouts=readouts, looks=looks, prefix=prefix, **options)
            self.stack, self._stand_ins = answering, [*routed, *answering.stand_ins(self)]
        self.stack.prompt_tokens = prompt_tokens
        if costs is not None:
            self.stack.costs = costs
        self.tuned = tuple(tuned)
        """How often the policy is asked, by batch size; see `tune`."""
        self._tried: Router | None = None  # what `tune` measures now
        self._enabled = self._attached = True
        self._forced: Tensor | None = None
        self._fixed: tuple[bool, ...] | None = None  # the forced route, if it is one for all rows, in the form that a compiler reads
        self._progress = _Progress()
        self._route: Tensor | None = None
        self._spent: Tensor | None = None
        install(self._stand_ins)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not in the middle of a call."""
        return {name: value for name, value in vars(self).items() if name != "_progress"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._progress = _Progress()

    @property
    def last_routes(self) -> Tensor:
        """(B, L) bool, which layers each row of the last call ran."""
        return self._last(self._route)

    @property
    def last_compute(self) -> Tensor:
        """(B,), compute of each row of the last call."""
        return self._last(self._spent).sum(dim=1)

    @property
    def _answering(self) -> AnsweringStack | None:
        """The stack, where it has readouts."""
        return self.stack if isinstance(self.stack, AnsweringStack) else None

    @property
    def routing(self) -> bool:
        """Whether calls of the model are routed now."""
        return self._enabled and (self.policy is not None or self._forced is not None)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model is the bare model."""
        enabled, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = enabled

    @contextmanager
    def forced(self, route: Tensor) -> Iterator[None]:
        """Within it every call takes `route`, (L,) or (B, L) bool, whatever the policy.

        Generation with n beams has n rows for each input: give it `route.repeat_interleave(n, dim=0)`.

        Raises:
            UserError: if it is not a route of so many layers.
        """
        before = self._forced, self._fixed
        self._forced = self._checked(route)
        self._fixed = tuple(self._forced.tolist()) if self._forced.dim() == 1 else None
        try:
            yield
        finally:
            self._forced, self._fixed = before

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
            network=identity(self.model, self.path.removeprefix(self.prefix), self.stack.channel_dim, self.stack.prompt_tokens, self.form),
            price=self.price,
            price_table=self.table,
            trained_on=self.trained_on,
            reward=self.reward,
            tuned=self.tuned,
            overwrite=overwrite,
        )

    def tune(self, example: Mapping[str, Any] | Tensor, *, repeats: int = REPEATS) -> Tuned:
        """Measures on a batch, at the price that is set, whether the policy had better be asked less often at this size, and does so from now on.

        Below the size at which asking it for each row after every layer pays, it is asked after every other layer, or once for the batch, or
        everything runs: whichever is fastest. No way passes over more layers at once than the policy would for any row of the batch. What is found
        is saved with the policy, and its model card says it; batches of other sizes follow the largest tuned size that is not larger, or else the
        smallest. `handle.tuned = ()` forgets it.

        Args:
            example: the model's arguments by name, or its first, for as many rows as will be run together.
            repeats: timed calls of each way.

        Raises:
            UserError: if no policy is attached, or the handle is disabled.
        """
        if self.policy is None or not self._enabled:
            raise UserError("there is no policy to tune: attach(model, policy), and call handle.tune outside of handle.disabled()")

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

    def detach(self) -> None:
        """Gives the model and its modules their own `forward` back; the handle is of no use afterwards."""
        if not self._attached:
            raise UserError(f"the policy was detached from {self.path} already")
        remove(self._stand_ins)
        self._enabled = self._attached = False
        self._progress = _Progress()

    def check_standing(self) -> None:
        """Refuses a model of which a module was replaced, so that it would not be answered by the readouts.

        Raises:
            UserError: naming the module.
        """
        for one in self._stand_ins:
            if isinstance(one, Beside) and one.must_stand and self.model.get_submodule(one.name) is not one.module:
                raise UserError(f"{one.name} was replaced after the policy was attached: detach() first, and attach once the model is as it shall be")

    def call_layer(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs layer `i` on the rows whose next layer it is, and sends them on."""
        answering = self._answering
        if answering is not None and answering.looking:
            return answering.pass_by(i, args, kwargs)
        turn = self.open_turn(i, args, kwargs)
        returned = None if turn.rows is None else self.stack.forwards[i](*turn.args, **turn.kwargs)
        return self.close_turn(turn, returned)

    def open_turn(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Turn":
        """Finds the rows whose next layer is `i`, which the model calls, and what the layer is called with for them."""
        hidden, call = LayerCall.of(self.stack.names[i], args, kwargs)
        call.check()
        progress = self._progress
        state = progress.state
        begins = state is None or i <= progress.at
        call = routable(call, begins)
        if state is None or begins:
            check_first_time(i)
            state = self._begin(hidden, call)
        carry = state.carry
        assert isinstance(carry, CalledCarry)
        carry.hidden, carry.calls = hidden, {i: call}
        if i > progress.at + 1:  # the model left layers out by itself, such as wav2vec2 when it trains
            state.pass_over(i)
        progress.at = i
        progress.collected.begin()
        rows = state.due(i)
        if rows is None:
            return Turn(i, state, None)
        some, called = self.stack.gathered_call(i, carry, state.some(rows))
        return Turn(i, state, rows, *called.as_given(some))

    def close_turn(self, turn: "Turn", returned: Any) -> Any:
        """Sends the rows on after their layer, which `returned` something for them. Returns what the layer returns to its model."""
        stack, answering, i, state = self.stack, self._answering, turn.index, turn.state
        carry, router = state.carry, self._progress.router
        assert isinstance(carry, CalledCarry) and router is not None
        call = carry.calls[i]
        if turn.rows is not None:
            state.ran(i, turn.rows, stack.ran(i, carry, state.some(turn.rows), returned))
        self._progress.collected.end(stack.routed[i], turn.rows, call.row_count)
        if turn.rows is None:
            fill_caches(i, carry.hidden, call)
            stack.skip(carry)
        else:
            self._decide(router, state, i, turn.rows)
        if i == stack.depth - 1:
            if answering is not None:
                answering.leave(state)
            self._end(state, call)
        return stack.returned(i, carry)

    def takes_fixed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether `run_fixed` does all that this call of a layer needs: one route for all rows, and no cache to be filled."""
        return self._fixed is not None and not any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))

    def run_fixed(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Layer `i` on the forced route of all rows, with nothing but the model's own operations, for graphs that are recorded. Nothing is noted."""
        assert self._fixed is not None
        self._route = self._spent = None
        stack, answering = self.stack, self._answering
        hidden, call = LayerCall.of(stack.names[i], args, kwargs)
        carry = CalledCarry(hidden=hidden, full_flops=hidden, calls={i: call})
        if self._fixed[i]:
            stack.keep_returned(i, carry, stack.forwards[i](*args, **kwargs))
        else:
            refuse_collecting()
        if answering is not None and i == stack.depth - 1:
            carry.mask = answering.seen_tokens(hidden, real_tokens(call, hidden.shape[1])) if hidden.dim() == 3 else None
            answering.leave_together(max(k for k, runs in enumerate(self._fixed) if runs), carry)
        return stack.returned(i, carry)

    def _begin(self, hidden: Tensor, call: LayerCall) -> RoutingState:
        """A new call of the model."""
        self._check_layers()
        route = kept_route(call, self._cause())
        if self._forced is not None:
            check_forced(self._forced, route)
            route = self._forced if route is None else route
        self._check_width(hidden)
        self._check_device(hidden)
        if self.flops is None:
            self.flops = counted_flops(self.stack.routed, self.stack.forwards, self.stack.forms, hidden, self.stack.settled(0, hidden, call))
        router, price = self._router(route, hidden)
        if self._answering is not None:
            self._answering.adopt(hidden)
        state = RoutingState(self.stack, router.rules, hidden, price, self.stack.carry_of(hidden, call, self.flops))
        self._progress.state, self._progress.router, self._progress.at = state, router, -1
        self._progress.collected = Collected()
        self._route, self._spent = state.route, state.spent
        return state

    def _router(self, route: Tensor | None, hidden: Tensor) -> tuple[Router, Tensor | float]:
        """Who decides in a call that begins with `hidden`, on a `route` if it is given; and at which price, one for all rows or (B,)."""
        if route is not None:
            return FixedRoute(route), self.price
        assert self.policy is not None
        router = router_for(self.policy.to(hidden.device), self.tuned, hidden.shape[0]) if self._tried is None else self._tried
        return router, self.price

    def _decide(self, router: Router, state: RoutingState, i: int, rows: Tensor) -> None:
        """Sends the rows on that have run layer `i`."""
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
            state.follow(rows, router.decide(state, i, rows))

    def _end(self, state: RoutingState, call: LayerCall) -> None:
        keep_route(call, state.route)
        self._progress.state = self._progress.router = None

    def _checked(self, route: Any) -> Tensor:
        """A route that was given, bool."""
        checked = torch.as_tensor(route)
        if checked.dim() not in (1, 2) or checked.shape[-1] != self.stack.depth:
            raise UserError(f"a route of {self.path} has shape ({self.stack.depth},) or (rows, {self.stack.depth}), got {tuple(checked.shape)}")
        if not ((checked == 0) | (checked == 1)).all():
            raise UserError("a route is of True and False, for the layers that run and those that do not; got other numbers")
        if not checked[..., 0].all():
            raise UserError("layer 0 always runs, and the route leaves it out")
        return checked.bool()

    def _check_layers(self) -> None:
        """Refuses a model that no longer calls the layers that the policy was attached to."""
        try:
            now = list(self.model.get_submodule(self.path).children())
        except AttributeError:  # somebody put something around a part of the model
            return
        L, attach_again = self.stack.depth, "detach() first, change the layers, then attach a policy for those that are left"
        if len(now) != L:
            raise UserError(f"{self.path} has {len(now)} layers, and had {L} when the policy was attached: {attach_again}")
        for i, (one, routed) in enumerate(zip(now, self.stack.routed, strict=True)):
            if one is not routed and all(module is not routed for module in one.modules()):  # it may have been wrapped
                raise UserError(f"layer {i} of {self.path} was replaced after the policy was attached: {attach_again}")
        depth = depth_of(self.model, self.path)
        if depth is not None and self._configured_depth is not None and depth < self._configured_depth:
            raise UserError(
                f"the model ends after {depth} of its {L} layers by itself (num_hidden_layers of its configuration, which assistant_early_exit "
                "sets), and the policy decides about all of them: generate without an early exit, or within handle.disabled()"
            )

    def _cause(self) -> str:
        """How a cache that has no route was filled."""
        if self._progress.state is not None and self._progress.at < self.stack.depth - 1:
            return (
                f"the last call of the model ended after layer {self._progress.at} of {self.stack.depth}, by an error or an exit of its own, "
                "and left its cache without a route: begin with an empty cache, and let calls run to the last layer"
            )
        adapters = getattr(self.model, "peft_config", {})
        if any("PREFIX_TUNING" in str(getattr(config, "peft_type", "")) for config in (adapters.values() if isinstance(adapters, dict) else ())):
            return "prefix tuning fills the cache before the first layer, so its rows have no route: train another kind of adapter, such as LoRA"
        return (
            "the cache was filled while no policy was attached, or by an adapter such as prefix tuning, so its rows have no route: begin with an "
            "empty cache, and take an adapter that leaves it alone, such as LoRA"
        )

    def _check_width(self, hidden: Tensor) -> None:
        width = hidden.shape[self.stack.channel_dim]
        self.stack.width = self.stack.width or width
        if width != self.stack.width:
            raise UserError(f"the policy is for a hidden state of width {self.stack.width}, that of {self.path} has {width}; name other layers")

    def _check_device(self, hidden: Tensor) -> None:
        """A copy of a layer that `nn.DataParallel` makes would run the layer that it was copied from."""
        weight = next(self.stack.routed[0].parameters(), None)
        if weight is not None and weight.device != hidden.device and not self._stand_ins[0].was_own:  # as accelerate's hooks are, which move rows
            raise UserError(
                f"the layers of {self.path} are on {weight.device} and were called on {hidden.device}: use one process for each device, "
                "the copies of nn.DataParallel do not take a policy along"
            )

    def _last(self, recorded: Tensor | None) -> Tensor:
        if recorded is None:
            raise UserError("no call was routed yet: call the model first, with a policy or within handle.forced(route)")
        return recorded.detach().clone()
