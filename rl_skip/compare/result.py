"""What a comparison found: plain numbers for `compare.json`, `compare.md` and the terminal, and the policy's rows for the figures."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

__all__ = [
    "ANOTHER_ROW",
    "BEST_FIXED",
    "FULL_DEPTH",
    "ORACLE",
    "POLICY",
    "RANDOM",
    "BatchTime",
    "Comparison",
    "CurvePoint",
    "Interval",
    "Operating",
    "Rival",
    "RivalCurve",
    "RoutesTaken",
    "Verdict",
]

POLICY, FULL_DEPTH, BEST_FIXED = "policy", "full depth", "best fixed route"
RANDOM, ANOTHER_ROW, ORACLE = "random routes", "another row's eyes", "oracle"
"""What the report calls those that need no training; a trained rival is called by its curve's name."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Interval:
    """A number with its 95% bootstrap interval over rows, and over seeds where there are several."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class CurvePoint:
    """One point of an accuracy-compute curve, on test data; the mean over the seeds."""

    label: str
    compute: float
    accuracy: Interval
    """0 to 1."""


@dataclass(frozen=True)
class RivalCurve:
    """The curve of the policy, or of a rival."""

    name: str
    """`POLICY`, `BEST_FIXED`, … or the trained rival's name."""
    kind: str
    """As in `Curve`: "policy", "fixed", "full", "random", "eyes", "oracle", "static", "shallow", "gumbel", "exits", "one-shot", "budgets"."""
    points: tuple[CurvePoint, ...]
    """By ascending compute, those that validation data chose at some budget; at least one."""
    area: Interval
    """Mean accuracy over all budgets between 0.2 and 1."""


@dataclass(frozen=True)
class Rival:
    """The policy or a rival at one operating point, on test data; the mean over the seeds."""

    name: str
    kind: str
    label: str
    """Which point of its curve, for the first seed."""
    compute: float
    accuracy: Interval
    lead: Interval
    """The policy's accuracy minus this one's, row by row."""
    p_value: float
    """Of the paired test that both are equally accurate: exact McNemar with one run, sign flips of rows with several."""
    layers: tuple[int, ...] | None = None
    """The layers of a fixed route, for the first seed."""


@dataclass(frozen=True)
class Operating:
    """The policy and everything beside it where a user would run it."""

    budget: float | None
    """The mean compute that was asked for; None: as exported, at the policy's own price."""
    prices: tuple[float, ...]
    """The price that each run's policy saw."""
    validation_compute: float
    """The policy's mean compute where the price was chosen."""
    rivals: tuple[Rival, ...]
    """The policy first; those without a point within the budget are left out."""
    gap_closed: Interval | None
    """(policy − best fixed route) / (oracle − best fixed route), in reward at the operating price; None without an oracle or a gap."""
    rewards: dict[str, float]
    """Mean reward at the operating price of the policy, the best fixed route for that price, and the oracle where there is one."""
    distinct_routes: float
    """How many routes the policy used on test data."""
    route_entropy: float
    """Entropy in bits of how often it used each."""
    fixed_as_cheap: Rival | None = None
    """The best fixed route that spends no more than the policy, where the budget would allow more."""

    def rival(self, name: str) -> Rival | None:
        """The entry of that name."""
        return next((one for one in self.rivals if one.name == name), None)


@dataclass(frozen=True)
class BatchTime:
    """Milliseconds of one batch, and where skipping begins to pay; first run, as exported."""

    batch_size: int
    full_depth: float
    policy: float
    same_routes: float
    """The policy's routes without the policy: what is left is its own share."""
    policy_share: float
    """(policy − same routes) / policy, in [0, 1]."""
    break_even: float
    """The compute below which the policy is faster than full depth; 0: never."""


@dataclass(frozen=True)
class RoutesTaken:
    """What the first run's policy did with each of the N test rows as exported, for the figures."""

    route: Tensor
    """(N, L) bool."""
    prediction: Tensor
    """(N,) long."""
    correct: Tensor
    """(N,) float."""
    compute: Tensor
    """(N,) float."""
    labels: Tensor
    """(N,) long."""

    def run_rate(self, classes: int) -> Tensor:
        """(C, L), the share of the rows of each class that ran each layer; 0 for a class without rows."""
        rates = self.route.new_zeros(classes, self.route.shape[1], dtype=self.compute.dtype)
        for label in range(classes):
            rows = self.route[self.labels == label]
            if len(rows) > 0:
                rates[label] = rows.to(rates.dtype).mean(dim=0)
        return rates

    def flow(self) -> Tensor:
        """(L, L + 1) long, how many rows went from layer i to layer j; column L is the way out."""
        depth = self.route.shape[1]
        counts = self.route.new_zeros(depth, depth + 1, dtype=self.labels.dtype)
        following = self.labels.new_full((len(self.route),), depth)  # where each row goes next, seen from the end
        for i in reversed(range(depth)):
            ran = self.route[:, i]
            counts[i] = following[ran].bincount(minlength=depth + 1)
            following[ran] = i
        return counts


@dataclass(frozen=True)
class Verdict:
    """What to do."""

    use: str
    """"policy", "fixed", or the name of a trained rival: what serves best as exported."""
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All that `compare` found."""

    runs: tuple[str, ...]
    """The run folders, one for each seed."""
    task: str
    classes: tuple[str, ...]
    depth: int
    rows: int
    """N, test rows."""
    seeds: tuple[int, ...]
    curves: tuple[RivalCurve, ...]
    """The policy first."""
    operating: tuple[Operating, ...]
    """As exported first, then one for each budget."""
    times: tuple[BatchTime, ...]
    verdict: Verdict
    notes: tuple[str, ...]
    """What was left out, and why."""
    taken: RoutesTaken
    seconds: float = 0.0
    """How long the comparison took."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "taken"}
        return {"format_version": FORMAT_VERSION, **{name: _plain(value) for name, value in plain.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
