"""The handle of a policy that is attached to a model: what it does now, what it did last, and how to detach it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.answering import AnsweringStack, Beside
from rl_skip.attached.caches import check_forced, check_off, fill_caches, keep_route, kept_route
from rl_skip.attached.called import CalledCarry, CalledStack
from rl_skip.attached.calls import LayerCall
from rl_skip.attached.flops import LayerFlops, counted_flops
from rl_skip.attached.identity import identity
from rl_skip.attached.stand_in import StandIn, install, remove
from rl_skip.core.dial import Dial, PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.readouts import Readouts
from rl_skip.core.reward import LINEAR
from rl_skip.core.routers import FixedRoute, PolicyRouter
from rl_skip.core.routing import Router, RoutingState
from rl_skip.export.policy_folder import save

__all__ = ["Handle", "RoutedForward"]


class RoutedForward(StandIn):
    """What stands in the place of a layer's `forward` while a policy is attached."""

    def __init__(self, handle: "Handle", index: int, layer: nn.Module) -> None:
        super().__init__(handle, layer, f"layer {index}")
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.handle.routing:
            check_off((*args, *kwargs.values()))
            return self.original(*args, **kwargs)
        return self.handle.call_layer(self.index, args, kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer."""
        return self.original(*args, **kwargs)


class _Progress(threading.local):
    """How far a call of the model has come; each thread that calls it has its own."""

    state: RoutingState | None = None
    router: Router | None = None
    at = -1
    """The last layer that was called."""


class Handle(Dial):
    """A policy attached to a model, made by `rl_skip.attach`. The model stays the object that it was.

    Attention weights (`output_attentions`) are those of the rows that ran a layer. `LearningHandle` is one whose policy learns.

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
        readouts: what answers rows that leave early; None: what the model does after its last layer.
        prefix: where in `model`, around which adapters may have been put, the model is that the policy was trained on; it ends with a dot.
        trained_on: what the policy was trained on; plain JSON.
        reward: what it was rewarded for, in words.
    """

    learns = False
    """Whether the policy, and the readouts, learn while they are attached."""

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
        readouts: Readouts | None = None,
        prefix: str = "",
        trained_on: dict[str, Any] | None = None,
        reward: str = LINEAR.formula,
    ) -> None:
        self.model, self.path, self.policy, self.trained_on = model, path, policy, trained_on or {}
        self.prefix = prefix
        self.table = PriceTable() if table is None else table
        self.price = price
        self.flops, self.reward = flops, reward
        routed = [RoutedForward(self, i, layer) for i, layer in enumerate(layers)]
        options: dict[str, Any] = {"width": width or 0, "forwards": [one.run for one in routed], "channel_dim": channel_dim}
        self._stand_ins: list[StandIn] = [*routed]
        if readouts is None:
            self.stack = CalledStack(layers, **options)
        else:
            looks = self.learns or (policy is not None and policy.rules.layout.reads)
            answering = AnsweringStack(layers, model=model, path=path, readouts=readouts, looks=looks, prefix=prefix, **options)
            self.stack, self._stand_ins = answering, [*routed, *answering.stand_ins(self)]
        self.stack.prompt_tokens = prompt_tokens
        self._enabled = self._attached = True
        self._forced: Tensor | None = None
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
        before, self._forced = self._forced, self._checked(route)
        try:
            yield
        finally:
            self._forced = before

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
            network=identity(self.model, self.path.removeprefix(self.prefix), self.stack.channel_dim, self.stack.prompt_tokens),
            price=self.price,
            price_table=self.table,
            trained_on=self.trained_on,
            reward=self.reward,
            overwrite=overwrite,
        )

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
            if isinstance(one, Beside) and self.model.get_submodule(one.name) is not one.module:
                raise UserError(f"{one.name} was replaced after the policy was attached: detach() first, and attach once the model is as it shall be")

    def call_layer(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs layer `i` on the rows whose next layer it is, and sends them on."""
        stack, answering = self.stack, self._answering
        if answering is not None and answering.looking:
            return answering.pass_by(i, args, kwargs)
        hidden, call = LayerCall.of(self.stack.names[i], args, kwargs)
        call.check()
        progress = self._progress
        state = progress.state
        if state is None or i <= progress.at:
            state = self._begin(hidden, call)
        carry = state.carry
        assert isinstance(carry, CalledCarry)
        carry.hidden, carry.calls = hidden, {i: call}
        if i > progress.at + 1:  # the model left layers out by itself, such as wav2vec2 when it trains
            state.pass_over(i)
        progress.at = i
        rows = state.visit(i)
        if rows is None:
            fill_caches(i, hidden, call)
        else:
            assert progress.router is not None
            self._decide(progress.router, state, i, rows)
        if i == stack.depth - 1:
            if answering is not None:
                answering.leave(state)
            self._end(state, call)
        return stack.returned(i, carry)

    def _begin(self, hidden: Tensor, call: LayerCall) -> RoutingState:
        """A new call of the model."""
        route = kept_route(call)
        if self._forced is not None:
            check_forced(self._forced, route)
            route = self._forced if route is None else route
        self._check_width(hidden)
        self._check_device(hidden)
        if self.flops is None:
            self.flops = counted_flops(self.stack.routed, self.stack.forwards, hidden, call)
        router, price = self._router(route, hidden)
        if self._answering is not None:
            self._answering.adopt(hidden)
        state = RoutingState(self.stack, router.rules, hidden, price, self.stack.carry_of(hidden, call, self.flops))
        self._progress.state, self._progress.router, self._progress.at = state, router, -1
        self._route, self._spent = state.route, state.spent
        return state

    def _router(self, route: Tensor | None, hidden: Tensor) -> tuple[Router, Tensor | float]:
        """Who decides in a call that begins with `hidden`, on a `route` if it is given; and at which price, one for all rows or (B,)."""
        if route is not None:
            return FixedRoute(route), self.price
        assert self.policy is not None
        return PolicyRouter(self.policy.to(hidden.device)), self.price

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
