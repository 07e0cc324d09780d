"""The result of a comparison: plain numbers for `compare.json`, `compare.md` and the terminal, and the policy's rows for the figures."""

from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import Tensor

from rl_skip.core.reward import LINEAR
from rl_skip.core.task import score_key
from rl_skip.measure.compare.baseline import BaselineRecord

__all__ = [
    "BEST_FIXED",
    "FULL_DEPTH",
    "ORACLE",
    "POLICY",
    "RANDOM",
    "SHUFFLED",
    "BaselineCurve",
    "BaselineResult",
    "BatchTime",
    "Comparison",
    "CurvePoint",
    "Interval",
    "Operating",
    "RoutesTaken",
    "ScoreCurve",
    "Verdict",
]

POLICY, FULL_DEPTH, BEST_FIXED = "policy", "full-depth", "fixed"
RANDOM, SHUFFLED, ORACLE = "random", "shuffled", "oracle"
"""The names of the policy and of the bundled baselines that need no training, as in their records."""
FORMAT_VERSION = 2


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
    """One point of a score-compute curve, on test data; the mean over the seeds."""

    label: str
    compute: float
    score: Interval
    """0 to 1."""


@dataclass(frozen=True)
class ScoreCurve:
    """Score over compute of one way to run a network: what a figure draws."""

    record: BaselineRecord
    points: tuple[CurvePoint, ...]
    """By ascending compute, those that validation data chose at some budget; at least one."""


@dataclass(frozen=True)
class BaselineCurve(ScoreCurve):
    """The curve of the policy, or of a baseline."""

    area: Interval
    """Mean score over all budgets between 0.2 and 1."""


@dataclass(frozen=True)
class BaselineResult:
    """The policy or a baseline at one operating point, on test data; the mean over the seeds."""

    record: BaselineRecord
    label: str
    """Which point of its curve, for the first seed."""
    compute: float
    score: Interval
    lead: Interval
    """The policy's score minus this one's, row by row."""
    p_value: float
    """Of the paired test that both score alike: exact McNemar with one run, sign flips of rows with several."""
    layers: tuple[int, ...] | None = None
    """The layers of a fixed route, for the first seed."""


@dataclass(frozen=True)
class Operating:
    """The policy and everything beside it where a user would run it."""

    budget: float | None
    """The mean compute that was set; None: as exported, at the policy's own price."""
    prices: tuple[float, ...]
    """The price at which each run's policy ran."""
    validation_compute: float
    """The policy's mean compute where the price was chosen."""
    baselines: tuple[BaselineResult, ...]
    """The policy first; those without a point within the budget are left out."""
    gap_closed: Interval | None
    """(policy − best fixed route) / (oracle − best fixed route), in reward at the operating price; None without an oracle or a gap."""
    rewards: dict[str, float]
    """Mean reward at the operating price of the policy, the best fixed route for that price, and the oracle where there is one."""
    distinct_routes: float
    """How many routes the policy used on test data."""
    route_entropy: float
    """Entropy in bits of how often it used each."""
    fixed_as_cheap: BaselineResult | None = None
    """The best fixed route that spends no more than the policy, where the budget would allow more."""
    reached: bool = True
    """Whether the policy can spend as little as the budget; if not it stands here with the least that it can, and the others within the budget."""

    def baseline(self, name: str) -> BaselineResult | None:
        """The entry of that name."""
        return next((baseline for baseline in self.baselines if baseline.record.name == name), None)


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
    """What the first run's policy, as exported, did with each of the N test rows; for the figures."""

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
    """The name of what serves best as exported: `POLICY`, `BEST_FIXED`, or a baseline that is better than both."""
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All that `compare` measured."""

    runs: tuple[str, ...]
    """The run folders, one for each seed."""
    task: str
    classes: tuple[str, ...]
    depth: int
    rows: int
    """N, test rows."""
    seeds: tuple[int, ...]
    curves: tuple[BaselineCurve, ...]
    """The policy first."""
    operating: tuple[Operating, ...]
    """As exported first, then one for each budget."""
    times: tuple[BatchTime, ...]
    verdict: Verdict
    notes: tuple[str, ...]
    """What was left out, and why."""
    taken: RoutesTaken
    reward: str = LINEAR.formula
    """What the policy was rewarded for, in words."""
    seconds: float = 0.0
    """How long the comparison took."""
    score_name: str = "accuracy"
    """What the score is called, as `Task.score_name`; in JSON it is the key of every score."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows; of records, name and title."""
        key = score_key(self.score_name)
        return {"format_version": FORMAT_VERSION, **{name: _plain(value, key) for name, value in vars(self).items() if name != "taken"}}


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry, key) for entry in value]
    if not is_dataclass(value):
        return value
    named: dict[str, Any] = {}
    for name, inner in vars(value).items():
        if isinstance(inner, BaselineRecord):
            named |= {"name": inner.name, "title": inner.title}
        else:
            named[key if name == "score" else name] = _plain(inner, key)
    return named
