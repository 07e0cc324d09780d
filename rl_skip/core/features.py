"""The observation's parts: each a named feature, with its size, its bounds, how it is read and what it costs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl_skip.core.errors import UserError
from rl_skip.core.plugins import Registry, made
from rl_skip.core.view import View

__all__ = ["ALWAYS", "FEATURES", "STATE_BOUND", "Feature", "View", "as_feature", "check_features", "default_features", "find_features"]

MOST_CLASSES = 16
"""That `Answer` tells apart."""
STATE_BOUND = 1e4
"""Numbers of the network's own are cut here, so that an observation stays within bounds."""


class Feature:
    """One part of the observation. A person's own is a subclass, or an instance of one, named as `file.py:name`.

    Example:
        >>> class HiddenNorm(Feature):
        ...     name = "hidden_norm"
        ...     def read(self, view: View) -> Tensor:
        ...         return view.hidden.norm(dim=1, keepdim=True)
        >>> HiddenNorm().size(width=64)
        1
    """

    name: str
    """What files and messages call it; unlike any other's."""
    low, high = -STATE_BOUND, STATE_BOUND
    """The bounds, between which what is read is clamped."""
    normalised = False
    """Whether the policy puts a LayerNorm before it; for features of many numbers of one kind."""
    of_state = True
    """Whether it is read of the hidden state: with the scope "input" then once, before layer 0."""

    reads = False
    """Whether it looks at what the network would answer, by `View.probabilities`: then a decision costs a readout too."""
    at_once = False
    """Whether it reads a view's own properties alone but the price, and nothing of `View.state` that changes: then all layers' looks can be read in
    one call, and stand for every price."""

    stays = False
    """Whether it is the same after every layer, and so is read once."""
    starts_at_zero = False
    """Whether a policy's weights on it begin at zero, and no random numbers are drawn for them: at first it decides as without the feature."""

    def size(self, width: int) -> int:
        """How many numbers it has, for a stack of that width."""
        return 1

    def bounds(self, width: int) -> tuple[float, float]:
        """The lowest and the highest that each of its numbers can be, for a stack of that width."""
        return self.low, self.high

    def flops(self, width: int) -> int:
        """Operations of reading it for one row, in matrix products."""
        return 0

    def read(self, view: View) -> Tensor:
        """(R, size), float."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is read")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))


class _Normalised(Feature):
    """A vector of the stack's width, scaled to mean 0 and variance 1 as LayerNorm does before it learns a scale.

    So none of its D numbers can be further from 0 than √(D − 1), whatever the network's weights are.
    """

    normalised, at_once = True, True

    def size(self, width: int) -> int:
        return width

    def bounds(self, width: int) -> tuple[float, float]:
        furthest = math.sqrt(max(width - 1, 1))
        return -furthest, furthest

    def read(self, view: View) -> Tensor:
        vector = self.of(view).float().clamp(-STATE_BOUND, STATE_BOUND)  # the square of what explodes is not finite
        return torch.nn.functional.layer_norm(vector, vector.shape[-1:])

    def of(self, view: View) -> Tensor:
        """(R, D)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it reads")


class HiddenState(_Normalised):
    """The hidden state, averaged over the real tokens and normalised."""

    name = "hidden"

    def of(self, view: View) -> Tensor:
        return view.hidden


class WorkingMemory(_Normalised):
    """The working memory of a stack that has one, normalised likewise."""

    name = "memory"

    def of(self, view: View) -> Tensor:
        if view.memory is None:
            raise UserError("the stack has no working memory that a policy could see; leave memory out of --feature")
        return view.memory


class _Confidence(Feature):
    """A number that says how sure the network would be here, and the same at the last look; 0 at the first."""

    low, high, reads, at_once = 0.0, 1.0, True, True
    place: int
    """Which of the numbers in `View.confidence` it is."""

    def size(self, width: int) -> int:
        return 2

    def read(self, view: View) -> Tensor:
        return view.confidence_pairs[:, self.place]


class Entropy(_Confidence):
    """Entropy of what the network would answer, as a share of the largest there is."""

    name, place = "entropy", 0


class LargestProbability(_Confidence):
    """The largest probability of what the network would answer."""

    name, place = "largest_probability", 1


class Margin(_Confidence):
    """The largest probability less the second largest."""

    name = "margin"

    def read(self, view: View) -> Tensor:
        return view.confidence_pairs[:, 1] - view.confidence_pairs[:, 2]


class Agreement(Feature):
    """Whether the network would answer as it would have at the last look; of tokens, the share. 0 at the first look."""

    name, low, high, reads, at_once = "agreement", 0.0, 1.0, True, True

    def read(self, view: View) -> Tensor:
        now, before = view.confidence
        agrees = (now[:, 3:] == before[:, 3:]).float()
        return agrees if agrees.shape[1] == 1 else agrees.mean(dim=1, keepdim=True)


class Answer(Feature):
    """Which class the network would answer, now and at the last look, each as ones and zeros; of tokens, the shares. Zeros at the first look.

    Some answers may be trusted sooner than others.

    Args:
        classes: C, 1 to `MOST_CLASSES`; of later ones nothing is told apart.

    Raises:
        UserError: if there are none or more.
    """

    name, low, high, reads, at_once, starts_at_zero = "answer", 0.0, 1.0, True, True, True

    def __init__(self, classes: int = MOST_CLASSES) -> None:
        if not 1 <= classes <= MOST_CLASSES:
            raise UserError(f"the feature {self.name!r} tells 1 to {MOST_CLASSES} classes apart, got {classes}; set classes")
        self.classes = classes

    def size(self, width: int) -> int:
        return 2 * self.classes

    def read(self, view: View) -> Tensor:
        each = torch.arange(1, 1 + self.classes, device=view.rows.device)
        given = (view.confidence_pairs[:, 3:].unsqueeze(3) == each).float()  # (R, T, 2, C)
        return (given[:, 0] if given.shape[1] == 1 else given.mean(dim=1)).flatten(1)


class Moved(Feature):
    """How far the hidden state has moved since the last look, as a share of its norm, up to 2; 1 at the first look."""

    name, low, high, at_once = "moved", 0.0, 2.0, True

    def read(self, view: View) -> Tensor:
        moved = torch.linalg.vector_norm(view.hidden - view.previous(self.name, view.hidden), dim=1, keepdim=True)
        return moved / torch.linalg.vector_norm(view.hidden, dim=1, keepdim=True).clamp(min=1e-6)


class Position(Feature):
    """Where the row is: i / L after layer i."""

    name, low, high, of_state, at_once = "position", 0.0, 1.0, False, True

    def read(self, view: View) -> Tensor:
        return view.position.unsqueeze(1) / view.state.stack.depth


class Compute(Feature):
    """What the row has spent so far, in units of the whole stack at full depth, up to 4.

    All layers with their decisions are a little over 1; with the original module's gates around its cheapest bodies about 4.
    """

    name, low, high, of_state, at_once = "compute", 0.0, 4.0, False, True

    def read(self, view: View) -> Tensor:
        return view.compute.unsqueeze(1)


class Price(Feature):
    """The logarithm of the price, scaled so that the range of prices is −1 … 1."""

    name, low, high, of_state, at_once, stays = "price", -1.0, 1.0, False, True, True

    def read(self, view: View) -> Tensor:
        return view.state.layout.scale_price(view.price).unsqueeze(1)


ALWAYS: tuple[Feature, ...] = (Position(), Compute(), Price())
"""Without these no observation says where it was made, or for which price."""
FEATURES: Registry[Feature] = Registry("feature", "--feature")
CONFIDENCES: tuple[Feature, ...] = (Entropy(), LargestProbability(), Margin(), Agreement(), Moved())
"""What the network would say here, and how far it has moved: what a policy sees of a stack with readouts."""
for _feature in (HiddenState(), WorkingMemory(), *CONFIDENCES, Answer()):
    FEATURES.register(_feature.name, _feature)


def default_features(has_memory: bool, has_readouts: bool = False, classes: int = 0) -> tuple[Feature, ...]:
    """What a policy sees unless it is told otherwise: what the network would say, of a stack with readouts, and which class, where they answer each
    row with one of few; else the hidden state, and the working memory of a stack that has one.

    Args:
        has_memory: whether the stack has a working memory.
        has_readouts: whether it has readouts that the policy may ask.
        classes: how many classes they tell apart, `Readouts.classes`. Of many, each has too few rows to learn from.
    """
    if has_readouts:
        return (*CONFIDENCES, Answer(classes)) if 2 <= classes <= MOST_CLASSES else CONFIDENCES
    return (HiddenState(), WorkingMemory()) if has_memory else (HiddenState(),)


def fitted(features: Sequence[Feature], classes: int) -> tuple[Feature, ...]:
    """Those features, the answer for no more classes than readouts tell apart, where that is known: not 0. One of a person's own stays as it is."""
    return tuple(Answer(min(classes, part.classes)) if type(part) is Answer and classes > 0 else part for part in features)


def as_feature(given: "Feature | type[Feature] | str") -> Feature:
    """A feature as it is, one of a class that needs no arguments, or the one of a name."""
    if isinstance(given, str):
        return find_features((given,))[0]
    return _named(given, getattr(given, "__name__", repr(given)))


def find_features(references: Sequence[str], given: Sequence[Feature] = ()) -> tuple[Feature, ...]:
    """The features of those names: among `given`, registered, or a person's own as `file.py:name`.

    Raises:
        UserError: if there is none of that name.
    """
    by_name = {feature.name: feature for feature in given}
    for reference in references:
        _refuse_always(reference)
    return tuple(by_name[reference] if reference in by_name else _named(FEATURES.find(reference), reference) for reference in references)


def _named(found: object, reference: str) -> Feature:
    feature = made(found, Feature, FEATURES.kind, FEATURES.flag, reference)
    name = getattr(feature, "name", None)
    if not (isinstance(name, str) and name.isidentifier()):
        raise UserError(f"the feature {reference} needs a name of letters, digits and underscores, got {name!r}; set name = \"…\" in it")
    return feature


def _refuse_always(name: str) -> None:
    if any(name == feature.name for feature in ALWAYS):
        raise UserError(f"the feature {name!r} is part of every observation; leave it out of --feature")


def check_features(features: Sequence[Feature]) -> None:
    """Refuses features with the same name.

    Raises:
        UserError: naming the name that stands twice, or that is always there.
    """
    names = [feature.name for feature in features]
    for name in names:
        _refuse_always(name)
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(f"a feature cannot be called {name!r}: take a word of letters, digits and underscores that PyTorch does not use itself")
        if names.count(name) > 1:
            raise UserError(f"the feature {name!r} is named twice; name it once with --feature")
    for feature in features:
        if feature.name in FEATURES.names() and type(FEATURES.find(feature.name)) is not type(feature):
            raise UserError(f"there is another feature {feature.name!r} already; call yours by another name")
