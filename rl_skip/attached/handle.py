"""The handle of a policy that is attached to a model: what it does now, what it did last, and the way back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.caches import fill_caches, keep_route, kept_route
from rl_skip.attached.called import CalledCarry, CalledStack
from rl_skip.attached.calls import LayerCall
from rl_skip.attached.flops import LayerFlops, counted_flops
from rl_skip.attached.identity import identity
from rl_skip.dial import PriceTable
from rl_skip.errors import UserError
from rl_skip.export import checked_price, save
from rl_skip.inputs import Inputs
from rl_skip.policy import JumpPolicy
from rl_skip.routing import Walk, next_landings, whole_route
from rl_skip.stack import Carry

__all__ = ["Handle", "RoutedForward"]


class RoutedForward:
    """What stands in the place of a layer's `forward` while a policy is attached."""

    def __init__(self, handle: "Handle", index: int, original: Callable[..., Any], was_own: bool) -> None:
        self.handle, self.index, self.original, self.was_own = handle, index, original, was_own
        update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.handle.routing:
            return self.original(*args, **kwargs)
        return self.handle.call_layer(self.index, args, kwargs)


class Handle:
    """A policy attached to a model, made by `rl_skip.attach`. The model stays the object that it was.

    Attention weights (`output_attentions`) are those of the rows that ran a layer.

    Args:
        model: the model.
        layers: the L layers that rows may skip.
        path: where in the model they are.
        width: D; None: as wide as the first call shows.
        flops: operations of the layers; None: counted on the first call.
        policy: who decides; None: all layers run unless a route is forced.
        price: what the policy is told a unit of compute costs.
        table: which price led to which compute.
        channel_dim: where the D channels of the hidden state are.
        prompt_tokens: how many real tokens, from the first, a decision may look at; None: all that are there when the
            route is chosen.
        trained_on: what the policy was trained on; plain JSON.
    """

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
        trained_on: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.path, self.policy, self.trained_on = model, path, policy, trained_on or {}
        self.table = PriceTable() if table is None else table
        self.price = price
        self.flops = flops
        self._routed = [RoutedForward(self, i, layer.forward, "forward" in vars(layer)) for i, layer in enumerate(layers)]
        self.stack = _AttachedStack(layers, width=width or 0, forwards=[routed.original for routed in self._routed], channel_dim=channel_dim)
        self.stack.prompt_tokens = prompt_tokens
        self._enabled = True
        self._forced: Tensor | None = None
        self._walk: Walk | None = None
        self._at = -1  # the last layer that was called
        self._landings: Tensor | None = None
        self._route: Tensor | None = None
        self._spent: Tensor | None = None
        for layer, routed in zip(layers, self._routed, strict=True):
            layer.forward = routed

    @property
    def price(self) -> float:
        """What the policy is told a unit of compute costs. Higher skips more."""
        return self._price

    @price.setter
    def price(self, price: float) -> None:
        self._price = checked_price(price)

    @property
    def budget(self) -> float | None:
        """The mean compute that the price led to on validation data; None without a table. Set it, and the price follows.

        Setting raises `UserError` for a budget outside (0, 1] or below the smallest compute of the table.
        """
        return self.table.compute_for(self.price)

    @budget.setter
    def budget(self, budget: float) -> None:
        self.price = self.table.price_for(budget)

    @property
    def last_routes(self) -> Tensor:
        """(B, L) bool, which layers each row of the last call ran."""
        return self._last(self._route)

    @property
    def last_compute(self) -> Tensor:
        """(B,), compute of each row of the last call."""
        return self._last(self._spent).sum(dim=1)

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
        """Within it every call takes `route`, (L,) or (B, L) bool, and no policy is asked.

        Generation with n beams has n rows for each input: give it `route.repeat_interleave(n, dim=0)`.
        """
        before, self._forced = self._forced, route
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
            network=identity(self.model, self.path, self.stack.channel_dim, self.stack.prompt_tokens),
            price=self.price,
            price_table=self.table,
            trained_on=self.trained_on,
            overwrite=overwrite,
        )

    def detach(self) -> None:
        """Gives the model's layers their own `forward` back; the handle is of no use afterwards."""
        for layer, routed in zip(self.stack.routed, self._routed, strict=True):
            if vars(layer).get("forward") is not routed:
                raise UserError(f"the forward of layer {routed.index} was replaced after the policy was attached: undo that first, then detach")
        for layer, routed in zip(self.stack.routed, self._routed, strict=True):
            del layer.forward
            if routed.was_own:
                layer.forward = routed.original
        self._enabled = False

    def call_layer(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs layer `i` on the rows that land on it, and sends them on."""
        hidden, call = LayerCall.of(self.stack.names[i], args, kwargs)
        call.check()
        walk = self._walk
        if walk is None or i <= self._at:
            walk = self._begin(hidden, call)
        carry = walk.carry
        assert isinstance(carry, CalledCarry)
        carry.hidden, carry.calls = hidden, {i: call}
        if i > self._at + 1:  # the model left layers out by itself, such as wav2vec2 when it trains
            walk.landing.clamp_(min=i)
        self._at = i
        rows = walk.visit(i)
        if rows is None:
            fill_caches(i, hidden, call)
        else:
            self._send(walk, i, rows)
        returned = self.stack.returned(i, carry)
        if i == self.stack.depth - 1:
            self._end(call)
        return returned

    def _begin(self, hidden: Tensor, call: LayerCall) -> Walk:
        """A new call of the model."""
        if self.flops is None:
            self.flops = counted_flops(self.stack.routed, self.stack.forwards, hidden, call)
        self._check_width(hidden)
        self.stack.waiting = self.stack.carry_of(hidden, call, self.flops)
        route = kept_route(call)
        if route is None and self._forced is not None:
            route = self._forced
        rules = None
        if route is None:
            assert self.policy is not None
            self.policy.to(hidden.device)
            rules = self.policy.rules
        walk = Walk(self.stack, rules, hidden, self.price)
        self._landings = None if route is None else next_landings(whole_route(route, walk.route, None))
        self._walk, self._at, self._route, self._spent = walk, -1, walk.route, walk.spent
        return walk

    def _send(self, walk: Walk, i: int, rows: Tensor) -> None:
        if self._landings is not None:
            walk.send(rows, self._landings[rows, i])
            return
        policy = self.policy
        assert policy is not None
        jumps = torch.zeros_like(rows)
        if policy.rules.choices[i]:
            observation = walk.observe(rows)
            walk.charge_decision(rows)
            with torch.no_grad(), torch.autocast(observation.device.type, enabled=False):
                jumps = policy(observation).argmax(dim=1)
        walk.jump(rows, jumps)

    def _end(self, call: LayerCall) -> None:
        if self._route is not None:
            keep_route(call, self._route)
        self._walk = self._landings = None

    def _check_width(self, hidden: Tensor) -> None:
        width = hidden.shape[self.stack.channel_dim]
        self.stack.width = self.stack.width or width
        if width != self.stack.width:
            raise UserError(f"the policy is for a hidden state of width {self.stack.width}, that of {self.path} has {width}; name other layers")

    def _last(self, recorded: Tensor | None) -> Tensor:
        if recorded is None:
            raise UserError("no call was routed yet: call the model first, with a policy or within handle.forced(route)")
        return recorded.detach().clone()


class _AttachedStack(CalledStack):
    """The stack of a model that calls its layers itself: it begins when the model calls layer 0, and the model finishes it."""

    waiting: CalledCarry

    def begin(self, inputs: Inputs) -> Carry:
        return self.waiting
