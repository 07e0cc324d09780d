"""The calls of a model that a policy is attached to: which rows run a layer, where they go after it, and what the model gets to see of it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from rl_skip.attached.returns import Form
from rl_skip.attached.stand_in import StandIn, install, remove
from rl_skip.attached.standing import Way, check_called, check_depth, check_device, check_layers_stand, check_width, why_no_route
from rl_skip.core.dial import Dial
from rl_skip.core.errors import UserError
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.readouts import Readouts
from rl_skip.core.routers import FixedRoute
from rl_skip.core.routing import Router, RoutingState
from rl_skip.core.tracing import ONE_ROUTE, tracing
from rl_skip.core.tuning import Tuned, router_for

__all__ = ["RoutedCalls", "RoutedForward", "Turn"]


class RoutedForward(StandIn):
    """What stands in the place of a layer's `forward` while a policy is attached."""

    handle: "RoutedCalls"

    def __init__(self, handle: "RoutedCalls", index: int, layer: nn.Module) -> None:
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


class RoutedCalls(Dial):
    """A model whose layers are called for the rows that a policy, or a forced route, sends to them.

    Args:
        model: the model.
        layers: the L layers that rows may skip.
        path: where in the model they are.
        width: D; None: as wide as the first call shows.
        flops: operations of the layers; None: counted on the first call.
        policy: the policy; None: all layers run unless a route is forced.
        channel_dim: where the D channels of the hidden state are.
        form: what each part of what a layer returns is; None: as is known of its class.
        readouts: what answers rows that leave early; None: what the model does after its last layer.
        prefix: where in `model` the model is that the policy was trained on; it ends with a dot.
    """

    learns = False
    """Whether the policy, and the readouts, learn while they are attached."""
    tuned: tuple[Tuned, ...] = ()
    """How often the policy is asked, by batch size; see `Handle.tune`."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        path: str,
        *,
        width: int | None,
        flops: LayerFlops | None,
        policy: JumpPolicy | None,
        channel_dim: int,
        form: Form | None,
        readouts: Readouts | None,
        prefix: str,
    ) -> None:
        self.model, self.path, self.policy, self.flops = model, path, policy, flops
        self._configured_depth = depth_of(model, path)
        self._way: Way | None = None  # on which the layers were found to be those that the policy was attached to
        routed = [RoutedForward(self, i, layer) for i, layer in enumerate(layers)]
        options: dict[str, Any] = {"width": width or 0, "forwards": [one.run for one in routed], "channel_dim": channel_dim, "form": form}
        self._stand_ins: list[StandIn] = [*routed]
        if readouts is None:
            self.stack = CalledStack(layers, **options)
        else:
            looks = self.learns or (policy is not None and policy.rules.layout.reads)
            answering = AnsweringStack(layers, model=model, path=path, readouts=readouts, looks=looks, prefix=prefix, **options)
            self.stack, self._stand_ins = answering, [*routed, *answering.stand_ins(self)]
        self._tried: Router | None = None  # what `tune` measures now
        self._enabled = self._attached = True
        self._forced: Tensor | None = None
        self._fixed: tuple[bool, ...] | None = None  # the forced route, if it is one for all rows, in the form that a compiler reads
        self._progress = _Progress()
        self._route: Tensor | None = None
        self._spent: Tensor | None = None

    def install(self) -> None:
        """Puts the stand-ins into the places of the modules' own `forward`."""
        install(self._stand_ins)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not in the middle of a call, and looks for its layers itself."""
        return {name: value for name, value in vars(self).items() if name != "_progress"} | {"_way": None}

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
            UserError: if it is not a route of so many layers, or the policy was detached.
        """
        if not self._attached:
            raise UserError(f"the policy was detached from {self.path}, so its calls take no route: attach again")
        before = self._forced, self._fixed
        self._forced = self._checked(route)
        self._fixed = tuple(self._forced.tolist()) if self._forced.dim() == 1 else None
        try:
            yield
        finally:
            self._forced, self._fixed = before

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

    def open_turn(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Turn:
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
            check_called(self._stand_ins[progress.at + 1 : i])
            state.pass_over(i)
        progress.at = i
        progress.collected.begin()
        rows = state.due(i)
        if rows is None:
            return Turn(i, state, None)
        some, called = self.stack.gathered_call(i, carry, state.some(rows))
        return Turn(i, state, rows, *called.as_given(some))

    def close_turn(self, turn: Turn, returned: Any) -> Any:
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
        check_depth(self.model, self.path, self.stack, self._configured_depth)
        route = kept_route(call, why_no_route(self.model, self.stack.depth, self._broken_off()))
        if self._forced is not None:
            check_forced(self._forced, route)
            route = self._forced if route is None else route
        check_width(self.path, self.stack, hidden)
        check_device(self.path, self._stand_ins[0], hidden)
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

    def _broken_off(self) -> int | None:
        """The layer after which the last call of the model ended too early; None: it did not."""
        return self._progress.at if self._progress.state is not None and self._progress.at < self.stack.depth - 1 else None

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
        if self._way is None or not self._way.stands:
            self._way = check_layers_stand(self.model, self.path, self.stack)

    def _last(self, recorded: Tensor | None) -> Tensor:
        if self._attached:
            self._check_layers()  # a model all of whose layers were replaced calls none that would have said so
            if self._progress.state is not None:  # the call ended early, or its last layers are not asked
                check_called(self._stand_ins[self._progress.at + 1 : self.stack.depth])
        if recorded is None:
            raise UserError("no call was routed yet: call the model first, with a policy or within handle.forced(route)")
        return recorded.detach().clone()
