"""`rl_skip.from_pretrained`: a model, its head and its policy in one call, from a run, an exported policy or the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rl_skip.attached.attaching import attach
from rl_skip.attached.handle import Handle
from rl_skip.attached.hub import POLICY_FOLDER
from rl_skip.attached.huggingface import HEAD
from rl_skip.attached.names import model_folder, policy_folder
from rl_skip.attached.pretrained import read_described, read_processor
from rl_skip.core.dial import checked_price
from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature
from rl_skip.export.description import Description
from rl_skip.export.policy_folder import DESCRIPTION, SkipModel, load, read_description

__all__ = ["from_pretrained"]

MODEL_FOLDER = "model"


def from_pretrained(
    name: Path | str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    price: float | None = None,
    budget: float | None = None,
    features: Sequence[Feature] = (),
    device: torch.device | str = "cpu",
) -> Handle | SkipModel:
    """A trained model that routes, in evaluation mode, with what makes its inputs as `processor`. No code from the folder is run.

    Args:
        name: a run folder; an exported policy, with its model in or beside it, or else the model on the hub that it names;
            or owner/name on the Hugging Face hub, of which the cache is enough without a network.
        revision: on the hub, a branch, a tag or a commit.
        token: for the hub, as huggingface_hub takes it.
        price: the price λ that the policy sees; the saved one by default.
        budget: the mean compute allowed, in (0, 1], in place of the price.
        features: those of one's own that the policy sees; registered ones need not be named.
        device: where to run.

    Returns:
        The handle of the policy attached to a model from transformers, `handle.model`. Where the network is one of ours, or has
        a head beside a backbone, `SkipModel`, which is called itself.

    Raises:
        UserError: if there is no such folder, it cannot be fetched or holds no policy, its model is missing, or the two do not fit.
    """
    if price is not None and budget is not None:
        raise UserError("a price and a budget exclude each other; give one of price= and budget=")
    policy, model = _parts(policy_folder(str(name), revision, token))
    description = read_description(policy, features)
    if not description.attached:
        return load(policy, price=price, budget=budget, features=features, device=device)
    model = _base_model(description, policy, token) if model is None else model
    if (model / HEAD).is_file():
        skipping = load(policy, model, price=price, budget=budget, features=features, device=device)
        skipping.stack.processor = read_processor(str(model))
        return skipping
    handle = _attached(description, policy, model, features)
    handle.model.to(device)
    if price is not None:
        handle.price = checked_price(price)
    if budget is not None:
        handle.budget = budget
    return handle


def _attached(description: Description, policy: Path, model: Path, features: Sequence[Feature]) -> Handle:
    described = description.network or {}
    loaded = read_described(model, described).model.eval()
    loaded.config._name_or_path = described["base_model"] or ""  # type: ignore[union-attr]  # and not the folder that it happens to lie in
    handle = attach(loaded, policy, features=features)
    handle.processor = read_processor(str(model))
    return handle


def _parts(folder: Path) -> tuple[Path, Path | None]:
    """Where the policy is, and its model, where it is here."""
    alone = (folder / DESCRIPTION).is_file()
    policy = folder if alone else folder / POLICY_FOLDER
    if not (policy / DESCRIPTION).is_file():
        raise UserError(f"{folder} holds no policy, no {DESCRIPTION} and no {POLICY_FOLDER}/{DESCRIPTION}; name a finished run or an exported policy")
    places = (folder / MODEL_FOLDER, folder.absolute().parent / MODEL_FOLDER if alone else folder)
    return policy, next((place for place in places if _has_model(place)), None)


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _base_model(description: Description, policy: Path, token: str | bool | None) -> Path:
    """The model that a policy was trained for, where its folder names one and holds none."""
    described = description.network or {}
    if described["base_model"] is None:
        raise UserError(f"{policy} has no model in or beside it, and names none; put the run's folder {MODEL_FOLDER} beside it")
    return Path(model_folder(described["base_model"], described["revision"], token))
