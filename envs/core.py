"""The batched environment core: N episodes on the device, one row of a routing state each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from envs.draws import Streams
from envs.episodes import Episodes, on_device
from rl_skip.core.errors import UserError, as_number
from rl_skip.core.inputs import Inputs, take_rows
from rl_skip.core.policy import JumpRules
from rl_skip.core.reward import LINEAR, Reward, as_reward
from rl_skip.core.routers import only_way
from rl_skip.core.routing import Decision
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples

__all__ = ["Beginning", "Ends", "Price", "Score", "SkipCore", "Step"]

Score = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) → (B,), the quality of each prediction."""
Price = float | tuple[float, float]
"""The price λ, in score per unit of relative compute: one number, or the range (low, high) from which each episode draws log-uniformly."""


@dataclass(frozen=True)
class Ends:
    """The R episodes that ended in one step."""

    rows: Tensor
    """(R,) long, the environments in which they ended."""
    observations: Tensor
    """(R, S), the last observations."""
    route: Tensor
    """(R, L) bool, the layers that ran."""
    compute: Tensor
    """(R,), compute of the route, decisions included."""
    scores: Tensor
    """(R,), quality of the prediction."""
    labels: Tensor
    """(R,) long."""
    predictions: Tensor
    """(R,) long, the likeliest class."""
    prices: Tensor
    """(R,), the price of each."""
    examples: Tensor
    """(R,) long, which rows of the examples were shown."""
    confidence: Tensor | None = None
    """(R,), the largest probability of the outputs, of tokens the mean; of a core that is `watched`, else None."""


@dataclass(frozen=True)
class Beginning:
    """What environments begin their next episode with, where that is not left to chance."""

    rows: Tensor | None = None
    """(R,) long, the environments that begin one; None: all."""
    examples: Tensor | None = None
    """(R,) long, which rows of the examples they show; None: drawn."""
    prices: Tensor | None = None
    """(R,), the price of each; None: drawn, or the one that is set."""


@dataclass(frozen=True)
class Step:
    """The result of one step of N environments. No tensor of it is used again by the core."""

    observations: Tensor
    """(N, S); of the new episode where one ended and the core restarts it."""
    rewards: Tensor
    """(N,): the rise of the penalty, taken off, and what the answer is worth where an episode ended."""
    terminated: Tensor
    """(N,) bool, where an episode ended in this step."""
    ends: Ends | None
    """The episodes that ended; None where none did."""


class SkipCore:
    """N environments, in each of which one example at a time passes the stack.

    When an episode begins, layer 0 has run and the example waits for a jump. A step sends every row on, to the next
    layer after which there is a choice, or to the end. The rewards of an episode sum to its total by
    `reward`, score − price · compute by default, with the compute that `routed_forward` finds for the same route: layer 0 is paid for
    with the first step. A jump that is illegal after its layer is shortened to the longest legal one. Each environment draws
    its examples from a random stream of its own, so what happens in one does not depend on how many others there are.

    The stack is put in evaluation mode here, and is called in whichever mode it is in later. Its weights may change
    between steps: rows on their way keep the hidden state they have.

    Args:
        stack: the network; its layers are what is skipped.
        rules: what a policy may do and see.
        examples: where episodes come from, drawn uniformly with replacement; on the device of the stack.
        score: quality of a prediction, added to the last reward.
        num_envs: N.
        price: see `Price`. May be set between steps; counts for episodes that begin later.
        reward: what an episode earns; a step pays the rise of its penalty since the last one.
        seed: environment i draws from the stream seed + i. None: a random seed.
        autoreset_mode: where an episode ended, the next one begins in the same step, in the next step (whose action there counts for nothing), or
            when `reset` is called for it.

    Raises:
        UserError: if there are no examples, no environments, or the price is invalid.
    """

    watched = False
    """Whether ends hold what a picture shows besides."""
    named_scores: Mapping[str, Score] = {}
    """What the score may be set to by name."""

    def __init__(
        self,
        stack: LayerStack,
        rules: JumpRules,
        examples: Examples,
        score: Score,
        *,
        num_envs: int,
        price: Price = 0.1,
        reward: Reward = LINEAR,
        seed: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"there must be at least 1 environment, got {num_envs}; set num_envs")
        if len(examples) == 0:
            raise UserError("there are no examples to draw episodes from; give at least one row")
        if (rules.layout.depth, rules.layout.width) != (stack.depth, stack.width):
            raise UserError(
                f"the rules are for {rules.layout.depth} layers of width {rules.layout.width}, "
                f"the stack has {stack.depth} of width {stack.width}; make the rules for this stack"
            )
        self.stack, self.rules, self.examples = stack.eval(), rules, examples
        self.num_envs, self.autoreset_mode = num_envs, autoreset_mode
        self.score, self.price, self.reward = score, price, reward
        self.streams = Streams(seed, num_envs, len(examples))
        self.legal: NDArray[np.bool_] = rules.legal.numpy()  # (L, J + 1)
        self.following = rules.next_layer(torch.arange(stack.depth).unsqueeze(1), torch.arange(rules.max_jump + 1)).numpy()  # (L, J + 1)
        self.everyone = torch.arange(num_envs, device=examples.labels.device)
        self.shown = np.zeros(num_envs, dtype=np.int64)
        """(N,), which row of the examples each environment shows."""
        self.over = np.zeros(num_envs, dtype=bool)
        """(N,), whose episode ended while no other has begun."""
        self.state: Episodes | None = None

    @property
    def price(self) -> Price:
        """The price of episodes that begin from now on."""
        return self._price

    @price.setter
    def price(self, price: Price) -> None:
        low, high = (as_number(end) for end in (price if isinstance(price, tuple) else (price, price)))
        if isinstance(price, tuple) and not 0 < low <= high < math.inf:
            raise UserError(f"a price range must be 0 < low <= high, got {price[0]} to {price[1]}; set price_range")
        if not 0 <= low < math.inf:
            raise UserError(f"a price must be a number of at least 0, got {price}; set price")
        self._price: Price = (low, high) if isinstance(price, tuple) else low

    def check_price(self, price: Price) -> None:
        """Raises `UserError` for a price that the observation cannot show, and would show as another; 0 is shown as the lowest."""
        layout = self.rules.layout
        for end in map(as_number, price if isinstance(price, tuple) else (price,)):
            if not math.isnan(end) and end != 0 and not layout.price_low <= end <= layout.price_high:
                shown = f"the observation shows prices from {layout.price_low:g} to {layout.price_high:g}"
                raise UserError(f"{shown}, got {end:g}; set price within them, or train a run with another --price-range")

    @property
    def price_range(self) -> tuple[float, float] | None:
        """The range that each episode draws its price from; None where there is one price."""
        return self._price if isinstance(self._price, tuple) else None

    @price_range.setter
    def price_range(self, price_range: tuple[float, float]) -> None:
        low, high = price_range
        self.price = low, high

    @property
    def reward(self) -> Reward:
        """What an episode earns; counts from the next step on."""
        return self._reward

    @reward.setter
    def reward(self, reward: Reward | type[Reward] | str) -> None:
        self._reward = as_reward(reward)

    @property
    def score(self) -> Score:
        """The quality of a prediction."""
        return self._score

    @score.setter
    def score(self, score: Score | str) -> None:
        found = self.named_scores.get(score) if isinstance(score, str) else score
        if not callable(found):
            known = "".join(f"{name!r}, or " for name in self.named_scores)
            raise UserError(f"a score is {known}a function (outputs, labels) → (B,), got {score!r}; set score")
        self._score = found

    @torch.no_grad()
    def reset(self, seeds: Sequence[int | None] | None = None, beginning: Beginning | None = None) -> Tensor:
        """Begins an episode in every environment, or in some. Returns the observations of all, (N, S).

        Args:
            seeds: new random streams for the environments, one number for each; None goes on with the old stream.
            beginning: which begin, with what.

        Raises:
            ResetNeeded: if only some begin and the others never have.
            UserError: if a feature is not finite.
        """
        beginning = beginning or Beginning()
        everyone = np.arange(self.num_envs)
        rows = everyone if beginning.rows is None else beginning.rows.cpu().numpy()
        for i in rows.tolist():
            seed = None if seeds is None else seeds[i]
            if seed is not None:
                self.streams[i] = np.random.default_rng(seed)
        if beginning.rows is None:
            self.state = Episodes(self.stack, self.rules, *self._draw(everyone, beginning))
            self.state.visit(0)  # after layer 0 there always is a choice: rules without one are refused
            self.state.note()
            self.paid = torch.zeros_like(self.state.price)  # (N,), the penalty in earlier rewards
            self.over[:] = False
        else:
            self._begin(rows, beginning)
        observations, layout = self._begun().observe(self.everyone), self.rules.layout
        if not observations.isfinite().all():
            seen = zip(layout.parts, observations.split(layout.sizes, dim=1), strict=True)
            names = ", ".join(repr(feature.name) for feature, numbers in seen if not numbers.isfinite().all())
            raise UserError(f"what an agent sees is not finite in {names}; mend that feature, or the network, whose weights may have diverged")
        return observations

    @torch.no_grad()
    def step(self, jumps: Tensor) -> Step:
        """Sends every row on by `jumps` (N,) long, and runs its next layers until there is a choice again.

        Raises:
            ResetNeeded: without autoreset, if an episode has ended that no other follows.
        """
        state, device = self._begun(), self.everyone.device
        resting, running = self.over.nonzero()[0], self.everyone  # with SAME_STEP nobody rests
        if len(resting) > 0:
            if self.autoreset_mode == AutoresetMode.DISABLED:
                which = ", ".join(map(str, resting.tolist()))
                raise ResetNeeded(f"the episode of environment {which} has ended; call reset() before the next step()")
            running = on_device((~self.over).nonzero()[0], device)
        self._run(running, jumps)
        compute = state.compute
        penalty = torch.zeros_like(compute) + self.reward.penalty(compute, state.price)  # (N,), also where it is one number
        rewards, self.paid = self.paid - penalty, penalty
        if len(resting) > 0:
            rewards[resting] = 0.0
        terminated = (state.heading == self.stack.depth) & ~self.over
        ended, ends = terminated.nonzero()[0], None
        if len(ended) > 0:
            ends = self._end(ended, compute)
            rewards[ends.rows] += self.reward.gain(ends.scores)
            self.over[ended] = True
        if not rewards.isfinite().all():
            wrong = int((~rewards.isfinite()).nonzero()[0])
            raise UserError(
                f"environment {wrong} earns {float(rewards[wrong])} at a compute of {float(compute[wrong]):.4f}, which is not finite; "
                "mend score, reward or network"
            )
        begins = ended if self.autoreset_mode == AutoresetMode.SAME_STEP else resting
        if len(begins) > 0:
            self._begin(begins, Beginning())
        return Step(state.observe(self.everyone), rewards, on_device(terminated, device), ends)

    def masks(self) -> Tensor:
        """(N, J + 1) bool, the jumps that are legal now; where an episode is over as after the last layer."""
        return on_device(self.legal[np.where(self.over, self.stack.depth - 1, self._begun().at)], self.everyone.device)

    @property
    def drawn(self) -> Tensor:
        """(N,) long, which row of the examples each environment shows."""
        return on_device(self.shown.copy(), self.everyone.device)

    def _run(self, rows: Tensor, jumps: Tensor) -> None:
        """Sends `rows` (R,) on by their jumps, of those (N,) of all, and runs their next layers until there is a choice again."""
        state, rules = self._begun(), self.rules
        if rows.shape[0] == 0:
            return
        longest = self.following.shape[1] - 1
        following = self.following[state.at, jumps.cpu().numpy().clip(0, longest)]  # (N,)
        sent = on_device(following, rows.device)
        state.follow(rows, Decision(sent if rows is self.everyone else sent[rows], rules.decision_flops, read=rules.layout.reads))
        for i in range(1, self.stack.depth):
            arrived = state.visit(i)
            if arrived is not None and not rules.choices[i]:
                state.follow(arrived, only_way(rules, i, arrived))
        state.note()

    def _begin(self, rows: NDArray[np.int64], beginning: Beginning) -> None:
        """Lets the next episode begin in `rows` (R,)."""
        self._begun().begin(rows, *self._draw(rows, beginning))
        self.paid.index_fill_(0, on_device(rows, self.paid.device), 0.0)
        self.over[rows] = False

    def _end(self, ended: NDArray[np.int64], compute: Tensor) -> Ends:
        """The episodes that ended in rows (R,), whose `compute` is among that of all, (N,)."""
        state, rows = self._begun(), on_device(ended, self.everyone.device)
        examples = on_device(self.shown[ended], rows.device)
        outputs, labels = state.outputs_of(rows), self.examples.labels.index_select(0, examples)
        return Ends(
            rows=rows,
            observations=state.observe(rows),
            route=state.route.index_select(0, rows),
            compute=compute.index_select(0, rows),
            scores=self.score(outputs, labels).float(),
            labels=labels,
            predictions=outputs.argmax(dim=1),
            prices=state.price.index_select(0, rows),
            examples=examples,
            confidence=outputs.float().softmax(dim=-1).amax(dim=-1).view(len(rows), -1).mean(dim=1) if self.watched else None,
        )

    def _draw(self, rows: NDArray[np.int64], beginning: Beginning) -> tuple[Inputs, Tensor]:
        """New examples and prices for `rows`, each from its own stream, which goes on in the same way where one of them is given."""
        device, (chosen, chances) = self.everyone.device, self.streams.draw(rows)
        self.shown[rows] = chosen if beginning.examples is None else beginning.examples.cpu().numpy()
        inputs = take_rows(self.examples.inputs, on_device(self.shown[rows], device))
        if beginning.prices is not None:
            return inputs, beginning.prices.to(device)
        low, high = self.price if isinstance(self.price, tuple) else (self.price, self.price)
        prices = low * (high / low) ** chances if low < high else np.full(len(rows), low)  # log-uniform
        return inputs, on_device(prices.astype(np.float32), device)

    def _begun(self) -> Episodes:
        if self.state is None:
            raise ResetNeeded("no episode has begun; call reset() first")
        return self.state
