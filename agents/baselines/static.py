"""The best single route, with a network trained on it: the baseline that matters most."""

from typing import Any

from torch import Tensor

from agents.agent import AGENTS
from agents.baselines.baseline import Baseline, Setting, Unsuited
from agents.run.learner import Learner
from agents.run.report import SEARCH_ROWS
from rl_skip.core.routers import FixedRoute
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.style import ORANGE
from rl_skip.measure.evaluation import best_fixed_route

__all__ = ["Static"]


class Static(Baseline):
    """One route for every row, searched on validation data after the warm-up; then the network is trained on it alone.

    Where the network learns, the route spends its whole budget: what the network can learn on it counts, not how well it does before.
    """

    record = BaselineRecord(
        "static",
        "fixed route, retrained",
        about="the network trained on the one route, searched after the warm-up",
        advice="train it with train.py --agent static",
        trained=True,
        per_budget=True,
        colour=ORANGE,
        marker="s",
        line="--",
    )

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        if learner.begins_untaught:
            raise Unsuited("of layers that have learned nothing the first are as good as any; set --agent shallow, or --warmup-epochs")
        self.route = learner.full_route
        """(L,) bool; every layer until it is searched."""

    def search(self) -> Tensor:
        """(L,) bool, the best route on validation data that leaves less than a layer's cost of the budget; the cheapest where none is within it."""
        learner = self.learner
        rows = learner.validation.some(SEARCH_ROWS)
        exits = learner.rules.allow_exit
        route = best_fixed_route(learner.stack, learner.task, rows, max_compute=self.budget, allow_exit=exits, spends=learner.tunes)
        return route.to(learner.device)

    def see_taught(self) -> None:
        self.route = self.search()

    def update(self, update: int) -> dict[str, Tensor]:
        """One supervised update on the route."""
        if update == self.learner.warmup_updates and not self.learner.begins_again:
            self.route = self.search()
        return self.learn_from_labels(update, self.router())

    def router(self) -> FixedRoute:
        """Every row along the route."""
        return FixedRoute(self.route)

    def settings(self) -> list[Setting]:
        """The one route."""
        return [Setting("layers " + ", ".join(map(str, self.route.nonzero().squeeze(1).tolist())), self.router())]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"route": self.route}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.route = state["route"].to(self.learner.device)


AGENTS.register("static", Static)
