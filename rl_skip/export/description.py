"""`policy.json`: the description of an exported policy, checked field by field when read."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from rl_skip.core.bounded import MOST_LAYERS, MOST_WIDTH
from rl_skip.core.dial import Guarantee, GuaranteeKind, PricePoint, PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.features import ALWAYS, FEATURES, Answer, Feature, find_features, fitted
from rl_skip.core.fields import Fields
from rl_skip.core.kinds import kind_of, read_network
from rl_skip.core.measured_costs import MeasuredCosts
from rl_skip.core.policy import JumpRules, ObservationLayout, PolicyScope, longest_jump
from rl_skip.core.readouts import read_groups
from rl_skip.core.reward import LINEAR
from rl_skip.core.task import score_key
from rl_skip.core.tuning import Tuned
from rl_skip.core.version import __version__

__all__ = ["FORMAT_VERSION", "Description"]

FORMAT_VERSION = 2
"""2: an observation is a list of features."""
TRAIN_ANEW = "train the policy anew with train.py"
COST_TOLERANCE = 1e-3
MOST_POINTS = 10_000
"""Of a price table; those that rl_skip measures have about 20."""


@dataclass(frozen=True)
class Description:
    """The contents of `policy.json`."""

    rules: JumpRules
    layer_costs: tuple[float, ...]
    """Share of each of the L layers in the cost of all; sums to 1."""
    price: float
    """The operating price, chosen on validation data."""
    table: PriceTable = PriceTable()
    """Which price led to which compute; empty where the policy knows one price."""
    trained_on: dict[str, Any] = field(default_factory=dict)
    reward: str = LINEAR.formula
    """What the policy was rewarded for, in words."""
    network: dict[str, Any] | None = None
    """What the network is rebuilt from; None where only its maker can."""
    readouts: dict[str, Any] | None = None
    """What the readouts are, `Readouts.plan`; None without any."""
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    guarantee: Guarantee | None = None
    """What is promised of a price, mostly of the operating price; None: nothing."""
    costs: MeasuredCosts | None = None
    """By which compute is a share of time; None: it is one of operations."""
    tuned: tuple[Tuned, ...] = ()
    """How often the policy is asked, by batch size; none: for each row, after every layer."""

    @property
    def attached(self) -> bool:
        """Whether the policy is attached to a model that its user has."""
        return self.network is not None and self.network.get("kind") == "attached"

    @property
    def missing(self) -> str | None:
        """Why the folder alone does not make a network, and what to do, to follow the folder's name; None: it does."""
        if self.network is None:
            return "does not describe its network; pass the network that the policy was trained on: load(folder, stack)"
        return kind_of(self.network).missing(self.network)

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        rules, layout, key = self.rules, self.rules.layout, score_key(self.table.score_name)
        return {
            "format_version": FORMAT_VERSION,
            "observation": {
                "features": _parts(layout),
                "price_low": layout.price_low,
                "price_high": layout.price_high,
                "readout_flops": layout.readout_flops,
            },
            "depth": layout.depth,
            "width": layout.width,
            "max_jump": rules.max_jump,
            "allow_exit": rules.allow_exit,
            "jumps": rules.jumps,
            "policy_scope": rules.scope,
            "hidden": rules.hidden,
            "layer_costs": list(self.layer_costs),
            "price": self.price,
            "guarantee": None if self.guarantee is None else asdict(self.guarantee),
            "score_name": self.table.score_name,
            "price_table": [{"price": point.price, "compute": point.compute, key: point.score} for point in self.table.points],
            "reward": self.reward,
            "trained_on": self.trained_on,
            "versions": self.versions,
            "network": self.network,
            **({} if self.readouts is None else {"readouts": self.readouts}),
            **({} if self.costs is None else {"costs": self.costs.to_json()}),
            **({"tuned": [one.to_json() for one in self.tuned]} if self.tuned else {}),
        }

    def write(self, file: Path) -> None:
        """Writes the file.

        Raises:
            UserError: if `trained_on` or `network` holds what JSON cannot.
        """
        try:
            text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"trained_on and network must be plain JSON: {error}") from None
        file.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path, features: Sequence[Feature] | None = ()) -> "Description":
        """Reads the file and checks every field.

        Args:
            features: those that the file may name besides the registered ones; None: whatever it names, to be described but not run.

        Raises:
            UserError: naming the field that is missing or wrong.
        """
        fields = Fields.read(file, FORMAT_VERSION, FORMAT_VERSION, TRAIN_ANEW)
        depth, width = fields.integer("depth", 1, MOST_LAYERS), fields.integer("width", 1, MOST_WIDTH)
        allow_exit = fields.flag("allow_exit")
        scope: PolicyScope = "input" if fields.text("policy_scope", get_args(PolicyScope)) == "input" else "state"
        longest = longest_jump(depth, allow_exit)
        if longest < 1:
            raise fields.wrong("depth", "deep enough to leave a choice, 3 layers or 2 with allow_exit")
        max_jump, hidden = fields.integer("max_jump", 1, longest), fields.integer("hidden", 1, MOST_WIDTH)
        layout = _read_layout(fields.object("observation"), width, depth, features)
        return cls(
            rules=JumpRules(layout, max_jump, allow_exit, scope, hidden, fields.flag("jumps")),
            layer_costs=_read_costs(fields, depth),
            price=fields.number("price"),
            table=_read_table(fields),
            trained_on=fields.object("trained_on").values,
            reward=fields.text("reward"),
            network=None if fields.get("network") is None else read_network(fields.object("network"), width, depth),
            readouts=_read_plan(fields, width) if layout.readout_flops else None,
            versions={name: fields.object("versions").text(name) for name in _versions()},
            guarantee=_read_guarantee(fields),
            costs=None if fields.values.get("costs") is None else MeasuredCosts.read(fields.object("costs"), depth),
            tuned=tuple(map(Tuned.read, fields.objects("tuned"))) if "tuned" in fields.values else (),
        )


def _versions() -> dict[str, str]:
    return {"rl_skip": __version__, "torch": torch.__version__, "python": platform.python_version()}


class _Named(Feature):
    """A feature of which a file tells the name and the size alone."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self._size = name, size

    def size(self, width: int) -> int:
        return self._size


def _parts(layout: ObservationLayout) -> list[dict[str, Any]]:
    return [{"name": feature.name, "size": size} for feature, size in zip(layout.parts, layout.sizes, strict=True)]


def _read_layout(fields: Fields, width: int, depth: int, given: Sequence[Feature] | None) -> ObservationLayout:
    parts = [{"name": part.text("name"), "size": part.integer("size")} for part in fields.objects("features")]
    names = [str(part["name"]) for part in parts]
    if names[-len(ALWAYS) :] != [part.name for part in ALWAYS]:
        raise fields.wrong("features", f"a list that ends with {', '.join(part.name for part in ALWAYS)}")
    given = [_Named(part.text("name"), part.integer("size")) for part in fields.objects("features")] if given is None else given
    features = _known(fields, names[: -len(ALWAYS)], given)
    features = fitted(features, next((part.integer("size") // 2 for part in fields.objects("features") if part.text("name") == Answer.name), 0))
    low = fields.number("price_low")
    high = fields.number("price_high")
    if not 0 < low < high:
        raise fields.wrong("price_low", f"above 0 and below price_high, {high:g}")
    readout_flops = fields.number("readout_flops")
    try:
        layout = ObservationLayout(width, depth, low, high, features, readout_flops)
    except UserError:
        raise fields.wrong("features", "a list of features that differ") from None
    if parts != _parts(layout):
        expected = " · ".join(f"{feature['name']} ({feature['size']})" for feature in _parts(layout))
        raise fields.wrong("features", f"{expected}, for a width of {width}")
    return layout


def _known(fields: Fields, names: Sequence[str], given: Sequence[Feature]) -> tuple[Feature, ...]:
    """The features of those names. A file that a name leads to is never run here: the folder may be anybody's."""
    given = [feature for feature in given if feature.name not in FEATURES.names()]
    known = {feature.name for feature in given} | set(FEATURES.names())
    for name in names:
        if name not in known:
            raise UserError(
                f"{fields.source}: the policy sees the feature {name!r}, which is not known here; pass it with features=[…], or register it first"
            )
    return find_features(names, given)


def _read_plan(fields: Fields, width: int) -> dict[str, Any]:
    """What readouts are; a file of before does not say, and its readouts are copies of the network's head."""
    if fields.values.get("readouts") is None:
        return {}
    plan = fields.object("readouts")
    if "rank" in plan.values:
        plan.integer("rank")
        if "pools" in plan.values:
            plan.flag("pools")
        if "groups" in plan.values:
            read_groups(plan, "groups", width)
    modules = plan.values.get("modules", ["head"])
    if not isinstance(modules, list) or not modules or not all(isinstance(name, str) for name in modules):
        raise plan.wrong("modules", "a list of the modules that are copied")
    return plan.values


def _read_costs(fields: Fields, depth: int) -> tuple[float, ...]:
    costs = fields.numbers("layer_costs", depth)
    if abs(sum(costs) - 1) > COST_TOLERANCE:
        raise fields.wrong("layer_costs", "shares that sum to 1")
    return costs


def _read_guarantee(fields: Fields) -> Guarantee | None:
    if fields.values.get("guarantee") is None:  # files of before do not know it
        return None
    promise = fields.object("guarantee")
    kind: GuaranteeKind = "expectation" if promise.text("kind", get_args(GuaranteeKind)) == "expectation" else "confidence"
    tolerance = promise.number("tolerance")
    if not 0 < tolerance < 1:
        raise promise.wrong("tolerance", "a number in (0, 1)")
    return Guarantee(kind, tolerance, promise.number("price"), promise.integer("rows"))


def _read_table(fields: Fields) -> PriceTable:
    rows = fields.objects("price_table")
    if len(rows) > MOST_POINTS:
        raise UserError(f"{fields.source}: price_table must have at most {MOST_POINTS:,} points, got {len(rows):,}; write the file anew")
    score_name = fields.text("score_name") if "score_name" in fields.values else "accuracy"  # files of before hold accuracies alone
    points = tuple(PricePoint(row.number("price"), row.number("compute"), row.number(score_key(score_name), 0.0, 1.0)) for row in rows)
    try:
        return PriceTable(points, score_name)
    except ValueError as error:
        raise UserError(f"{fields.source}: price_table: {error}; write the file anew") from None
