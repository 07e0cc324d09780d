"""Routing: where the rows of a batch are in a stack, where a router sends them after each layer, and what they have spent."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rl_skip.core.devices import uploaded
from rl_skip.core.heading import WAITING, Heading
from rl_skip.core.inputs import Inputs, device_of, row_count
from rl_skip.core.policy import JumpRules
from rl_skip.core.sight import Sight
from rl_skip.core.stack import Carry, LayerStack

__all__ = ["Decision", "Router", "RoutingState"]


@dataclass
class Decision:
    """Where R rows go after the layer that they have just run."""

    next_layer: Tensor | int
    """(R,) long, the layer that each runs next, or the one that all do; L: none, it leaves."""
    flops: Tensor | float = 0.0
    """Operations of deciding, for each row."""
    part: str = "decision"
    """The name of that cost for `CostModel.part`."""
    onward: bool = False
    """Whether all rows that do not leave run the very next layer, so that nobody has to search for them."""
    answers: Tensor | None = None
    """(R, ...), with which the rows that leave are answered; None: by the stack's readout of that depth, or else what it makes of them in the end."""
    read: bool = False
    """Whether `flops` holds a look at a readout already, which else is added for rows that leave early."""
    observation: Tensor | None = None
    """(R, S), what a policy saw; None without one."""
    logits: Tensor | None = None
    """(R, J + 1), its logits; None without a policy."""


class Router(ABC):
    """Decides, for the rows that have just run a layer, which layer each runs next.

    Example:
        >>> class EveryOther(Router):
        ...     def decide(self, state: "RoutingState", i: int, rows: Tensor) -> Decision:
        ...         return Decision(torch.full_like(rows, min(i + 2, state.stack.depth)))
        >>> from torch import nn
        >>> from rl_skip import ModuleStack, routed_forward
        >>> stack = ModuleStack(nn.Linear(3, 8), [nn.Linear(8, 8) for _ in range(4)], nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
        >>> routed_forward(stack, EveryOther(), torch.zeros(1, 3)).route.int().tolist()
        [[1, 0, 1, 0]]
    """

    rules: JumpRules | None = None
    """What the policy may do and see; None where no policy decides."""
    looks: bool = False
    """Of one that knows beforehand which layers all rows run: whether it is asked after each of them all the same, to see and to be charged."""

    def known(self, depth: int) -> Sequence[int] | None:
        """Which of L = `depth` layers all rows run, from 0 on, where that is known beforehand; None: `decide` says.

        Of a decision that is asked for all the same, only the cost counts then: one number that is another layer is refused, a tensor is not read.
        """
        return None

    @abstractmethod
    def decide(self, state: "RoutingState", i: int, rows: Tensor) -> Decision:
        """Called after layer `i` ran on the R `rows`."""


class RoutingState(Sight):
    """A batch on its way through a stack: where each row is, and what it has spent.

    `visit(i)` runs layer i on exactly the rows whose next layer it is; `follow` sends rows on as a decision says. The routed
    forward visits the layers in order and lets a router decide after each; an environment visits them after each of its
    steps. Every pass with routes goes through this class.

    Args:
        stack: the layers.
        rules: what the policy may do and see; None without a policy.
        inputs: of the batch.
        price: what compute costs, for each row or for all.
        carry: the result of `stack.begin(inputs)`, where it was called already.
    """

    def __init__(self, stack: LayerStack, rules: JumpRules | None, inputs: Inputs, price: Tensor | float, carry: Carry | None = None) -> None:
        if carry is None:
            with stack.computing(device_of(inputs)):
                carry = stack.begin(inputs)
        super().__init__(stack, rules, carry, price, row_count(inputs))
        B, L, device = row_count(inputs), stack.depth, carry.hidden.device
        self._heading = Heading(self.everyone)
        self._position: Tensor | int = 0  # last layer run
        self.route = torch.zeros(B, L, dtype=torch.bool, device=device)
        self.answers: Tensor | None = None
        """(B, ...), of the rows that left with an answer of their own."""
        self.answered = torch.zeros(B, dtype=torch.bool, device=device)
        self._any_waits = True  # for `finish`; False once all rows were answered at once
        self._company: tuple[int, Tensor] | None = None  # where all rows that have not left run the same layer next: which, and the rows
        self._costs: dict[tuple[str, float], Tensor] = {}
        if rules is not None and rules.scope == "input":
            self._know(rules)

    @property
    def compute(self) -> Tensor:
        """(B,), relative compute spent so far."""
        return self.spent.sum(dim=1)

    @property
    def next_layer(self) -> Tensor:
        """(B,) long, the layer that each row runs next; L: it left."""
        return self._heading.each

    @property
    def position(self) -> Tensor:
        """(B,) long, the last layer that each row has run; 0 before any."""
        if isinstance(self._position, int):
            self._position = torch.full_like(self.everyone, self._position)
        return self._position

    @property
    def ended(self) -> bool:
        """Whether all rows have left."""
        of_all = self._heading.of_all
        return bool((self.next_layer == self.stack.depth).all()) if of_all is None else of_all == self.stack.depth

    def visit(self, i: int) -> Tensor | None:
        """Runs layer `i` on the rows whose next layer it is. Returns them, (R,); None where there are none."""
        rows = self.due(i)
        if rows is None:
            return None
        with self.stack.computing(rows.device):
            counted = self.stack.run(i, self.carry, self.some(rows))
        self.ran(i, rows, counted)
        return rows

    def run_together(self, layers: Sequence[int], looks: Router | None = None) -> None:
        """Runs all but the last of `layers`, 0 and later ones in order, on all rows, which no one sends elsewhere; the last is their next.

        Args:
            layers: those that all rows run.
            looks: who decides after each, as is known beforehand, and is charged for it; None: nobody looks.

        Raises:
            ValueError: if these are no layers in order from 0 on, or a decision names one other layer for all rows.
        """
        layers = list(layers)
        if layers != sorted({0, *layers}) or layers[0] != 0 or layers[-1] >= self.stack.depth:
            raise ValueError(f"the layers known beforehand are {layers}, expected ascending ones of {self.stack.depth}, from 0 on; mend known()")
        stack, everyone, costs = self.stack, self.everyone, []
        marks = type(stack).on_jump is not LayerStack.on_jump
        for i, following in pairwise(layers):
            with stack.computing(everyone.device):
                counted = stack.run(i, self.carry, None)
            if looks is None:
                costs.append(stack.costs.layer(i, counted.detach().float()))
            else:
                self.ran(i, everyone, counted)
                decision = looks.decide(self, i, everyone)
                if isinstance(decision.next_layer, int) and decision.next_layer != following:
                    said = f"{type(looks).__name__} sends all rows from layer {i} to {decision.next_layer}"
                    raise ValueError(f"{said}, and knew beforehand that they run {following}; mend its known() or its decide()")
                self._charge(everyone, decision)
            if marks:
                stack.on_jump(self.carry, everyone, torch.full_like(everyone, following - i - 1))
        ran = layers[:-1]
        if costs:
            self.spent[:, ran], self.route[:, ran] = torch.stack(costs, dim=1).to(self.spent.dtype), True
        if ran:
            self._position = ran[-1]
            self._heading.send(None, layers[-1])

    def due(self, i: int) -> Tensor | None:
        """(R,), the rows whose next layer is `i`; None where there are none."""
        if self._company is not None and self._heading.of_all is None:
            layer, rows = self._company
            return rows if layer == i and rows.shape[0] > 0 else None
        return self._heading.due(i)

    def on_host(self, rows: Tensor) -> Tensor:
        """(R,) long, the same rows on the host, which knows those that were due last."""
        return self._heading.on_host(rows)

    def ran(self, i: int, rows: Tensor, counted: Tensor) -> None:
        """Notes that layer `i` ran on `rows` (R,), at the relative compute `counted` (R,); they wait for a decision."""
        cost = self.stack.costs.layer(i, counted.detach().float())
        if self.some(rows) is None:
            self.spent.select(1, i).copy_(cost)
            self.route.select(1, i).fill_(True)
            self._position = i
        else:
            self.spent.select(1, i).index_copy_(0, rows, cost.to(self.spent.dtype))
            self.route.select(1, i).index_fill_(0, rows, True)
            self.position.index_fill_(0, rows, i)
        self._heading.send(self.some(rows), WAITING)
        self._visited, self._said, self._looked = (i, rows), None, {}

    def follow(self, rows: Tensor, decision: Decision) -> None:
        """Adds the cost of a decision to what `rows` (R,) have spent, and sends them on as it says.

        Rows that leave without an answer of their own are marked as jumping.
        """
        self._charge(rows, decision)
        following, at, depth = self._send(rows, decision.next_layer), self._at(rows), self.stack.depth
        company = isinstance(at, int) and (self.some(rows) is None or (self._company is not None and self._company[1] is rows))
        self._company = None
        headed = isinstance(at, int) and at == depth - 1  # after the last layer the stack's own head answers
        answered = decision.answers is not None or (self.stack.readouts is not None and not headed)
        left, stay, leaving, staying = rows[:0], rows, None, None
        if answered or (company and decision.onward):
            left, stay, leaving, staying = self._parted(rows, following, at, decision)
        if company and (decision.onward or isinstance(following, int)):
            self._company = (at + 1 if decision.onward else following), stay  # type: ignore[assignment]
        if answered and left.shape[0] > 0:
            self._leave(rows, left, leaving, decision)
        else:
            stay, staying = rows, None
        if type(self.stack).on_jump is not LayerStack.on_jump and stay.shape[0] > 0:
            jumps = following - at - 1 + torch.zeros_like(rows)
            self.stack.on_jump(self.carry, stay, jumps if staying is None else jumps.index_select(0, staying))

    def _send(self, rows: Tensor, following: Tensor | int) -> Tensor | int:
        """Notes which layer `rows` (R,) run next, (R,) or one for all. Returns it, on their device, as one number where there is one row."""
        if isinstance(following, Tensor) and following.shape != rows.shape:
            raise ValueError(f"a decision has a next layer for each of {rows.shape[0]} rows, got shape {tuple(following.shape)}; mend the router")
        some = self.some(rows)
        if some is None and rows.shape[0] == 1:
            following = int(following)
        return self._heading.send(some, following)

    def _parted(
        self, rows: Tensor, following: Tensor | int, at: Tensor | int, decision: Decision
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Those of `rows` (R,) that leave, the others, and the places of both among `rows`; None: all or none."""
        depth, device = self.stack.depth, rows.device
        if isinstance(following, int) and isinstance(at, int):
            return (rows, rows[:0], None, None) if following == depth else (rows[:0], rows, None, None)
        leaving = self._heading.sent_to(following, depth) if isinstance(following, Tensor) else torch.full(rows.shape, following == depth)
        if decision.answers is None and isinstance(at, Tensor):
            leaving = leaving & (at.cpu() < depth - 1)
        places = leaving.nonzero().squeeze(1)
        if places.shape[0] in (0, rows.shape[0]):
            return (rows[:0], rows, None, None) if places.shape[0] == 0 else (rows, rows[:0], None, None)
        places, others = uploaded(places, device), uploaded((~leaving).nonzero().squeeze(1), device)
        return rows.index_select(0, places), rows.index_select(0, others), places, others

    def _charge(self, rows: Tensor, decision: Decision) -> None:
        """Adds the cost of a decision to what `rows` (R,) have spent."""
        if not isinstance(decision.flops, Tensor) and decision.flops <= 0:
            return
        some = self.some(rows)
        if isinstance(decision.flops, Tensor):
            full = self.carry.full_flops if some is None else self.carry.full_flops.index_select(0, rows)
            cost = self.stack.costs.part(decision.part, decision.flops / full)
        else:
            cost = self._cost(decision.part, decision.flops)
            cost = cost if some is None else cost.index_select(0, rows)
        self._spend(rows, cost)

    def _spend(self, rows: Tensor, cost: Tensor) -> None:
        """Adds `cost` (R,) to what `rows` (R,) have spent at the last layer of each."""
        some, at = self.some(rows), self._at(rows)
        if not isinstance(at, int):
            self.spent[rows, at] += cost
        elif some is None:
            self.spent.select(1, at).add_(cost)
        else:
            self.spent.select(1, at).index_add_(0, rows, cost.to(self.spent.dtype))

    def _cost(self, part: str, flops: float) -> Tensor:
        """(B,), what a part of so many operations costs each row."""
        if (part, flops) not in self._costs:
            self._costs[part, flops] = self.stack.costs.part(part, flops / self.carry.full_flops)
        return self._costs[part, flops]

    def pass_over(self, i: int) -> None:
        """Moves rows whose next layer lies before `i` on to `i`, where the model itself leaves out the layers between."""
        self._heading.pass_over(i)
        self._company = None

    def outputs(self) -> Tensor:
        """(B, ...), the outputs of all rows, once they have left: answers of their own, or those of the stack's `finish`."""
        if self.answers is None:
            return self._finish(self.carry)
        if not self._any_waits:
            return self.answers
        rest = (~self.answered).nonzero().squeeze(1)
        return self.answers if rest.shape[0] == 0 else self.answers.index_copy(0, rest, self.finish(rest).to(self.answers.dtype))

    def outputs_of(self, rows: Tensor) -> Tensor:
        """(R, ...), what the named rows say, which have left."""
        if self.answers is None or not (answered := self.answered[rows]).any():
            return self.finish(rows)
        outputs, rest = self.answers[rows], (~answered).nonzero().squeeze(1)
        return outputs if rest.shape[0] == 0 else outputs.index_copy(0, rest, self.finish(rows[rest]).to(outputs.dtype))

    def fork(self) -> "RoutingState":
        """A copy of the state, which can take another route."""
        other = copy(self)
        self.carry.packed = None  # both write from now on
        other.carry = copy(self.carry)
        other._looks = {name: seen.fork() for name, seen in self._looks.items()}
        other._looked, other._heading, other._position = {}, self._heading.fork(), self.position.clone()
        for name in ("price", "route", "spent", "answered"):
            setattr(other, name, getattr(self, name).clone())
        return other

    def replace(self, rows: Tensor, fresh: "RoutingState") -> None:
        """Puts all that is known of the rows of another state in the place of `rows`, but where they are.

        The inputs of both must have the same shapes: an environment takes them from the same examples.
        """
        self._any_waits, self._costs, self._company, self._cheap = True, {}, None, None
        self.carry.put(rows, fresh.carry)
        for name in ("price", "route", "spent") if self.answers is None else ("price", "route", "spent", "answered"):
            getattr(self, name).index_copy_(0, rows, getattr(fresh, name))
        # Not in place: a working memory may still be the parameter it began as, seen by every row.
        if self._known and not fresh._known and self.rules is not None:
            fresh._know(self.rules)
        self._known = {name: values.index_copy(0, rows, fresh._known[name]) for name, values in self._known.items()}
        self._looked = {}
        for seen in self._looks.values():
            seen.forget(rows)

    def _leave(self, rows: Tensor, left: Tensor, leaving: Tensor | None, decision: Decision) -> None:
        """Answers `left`, those of `rows` (R,) at the places `leaving` or, None, all, by the decision's answers or by their readouts."""
        if decision.answers is not None:
            self._answer(left, decision.answers if leaving is None else decision.answers.index_select(0, leaving))
            return
        assert self.stack.readouts is not None
        flops = self.stack.answer_flops(self.stack.readouts, self.carry, left, decision.read)
        if isinstance(flops, Tensor) or flops > 0:
            self._spend(left, self.stack.costs.part("readout", flops / self.carry.full_flops[left]))
        if self.stack.answers_late:
            return
        visited = self._visited
        if self.stack.looks_at_answers and self._said is not None and self._said[0] is rows:
            self._answer(left, self._said[1] if leaving is None else self._said[1].index_select(0, leaving))
        else:
            self._answer(left, self._read(visited[0], left) if visited is not None and visited[1] is rows else self._after(left, self._read))

    def _answer(self, rows: Tensor, answers: Tensor) -> None:
        if self.some(rows) is None:
            self.answers, self._any_waits = answers, False
        else:
            before = answers.new_zeros(self.price.shape[0], *answers.shape[1:]) if self.answers is None else self.answers
            self.answers = before.index_copy(0, rows, answers)
        self.answered.index_fill_(0, rows, True)

    def _at(self, rows: Tensor) -> Tensor | int:
        """The last layer that `rows` (R,) have run: one number where it has just been visited with them, else (R,)."""
        layer = self.layer_of(rows)
        if layer is not None:
            return layer
        return self.position if self.some(rows) is None else self.position[rows]
