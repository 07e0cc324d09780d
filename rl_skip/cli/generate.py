"""`python -m rl_skip generate`: a language model continues a prompt, on the route that a run's policy chooses for it, or pruned to a fixed one."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.attaching import attach
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.pretrained import load_model, read_tokenizer
from rl_skip.attached.vocabulary import most_tokens
from rl_skip.core.dial import checked_price
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.readouts import PoolingAdapter
from rl_skip.export.pruned import DESCRIPTION, FORMAT_VERSION, PrunedNetwork, load_pruned
from rl_skip.measure.runs import CONFIG, MODEL, read_run

__all__ = ["generate"]

NAME_ONE = "name a run that was trained with --task language, or what rl-skip prune made of one"


def generate(
    run: Path,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    price: float | None = None,
    budget: float | None = None,
    seed: int = 0,
    cache: bool = True,
    device: torch.device | str = "cpu",
    allow_code: bool = False,
) -> dict[str, Any]:
    """The continuation of a prompt by the model of a finished run, with its policy attached, or by what `prune` made of one.

    Args:
        run: the folder of the run, or of the pruned network.
        prompt: at least a token; the route is chosen on it.
        tokens: how many follow.
        temperature: 0 takes the likeliest token each time; 1 draws from the model's own distribution.
        price, budget: what compute may cost; the policy's operating price by default. A pruned network has but one route.
        seed: of the drawing.
        cache: whether what was made of earlier tokens is kept; without, the whole text is gone through for each one.
        device: where to run.
        allow_code: whether the Python files that the run names may be run, those of its own features.

    Returns:
        The text with its prompt, the layers of the route, and its compute; of a pruned network what was measured on test rows.

    Raises:
        UserError: if there is no language model, it does not generate so many tokens, the prompt has none, or a pruned network is given a price or a
            budget.
    """
    if tokens < 1:
        raise UserError(f"at least 1 token follows, got {tokens}; set --tokens, or tokens=")
    if not 0 <= temperature < math.inf:
        raise UserError(f"a temperature is a number of at least 0, got {temperature}; set --temperature, or temperature=")
    drawing: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    drawing |= {"max_new_tokens": tokens, "use_cache": cache}
    if (run / DESCRIPTION).is_file():
        if price is not None or budget is not None:
            raise UserError(f"{run} is a pruned network, which has one route; leave --price and --budget out, or name the run")
        return _on_one_route(run, prompt, drawing, seed, device)
    if run.is_dir() and not (run / CONFIG).exists():
        raise UserError(f"{run} is neither a run nor a pruned network; name a folder that train.py or rl-skip prune wrote")
    finished = read_run(run, allow_code=allow_code)
    folder = run / MODEL
    if not folder.is_dir():
        raise UserError(f"the run {run} has no language model; {NAME_ONE}")
    model: Any = load_model(str(folder)).model.to(device).eval()
    tokenizer, inputs = _read(model, folder, prompt)
    handle = attach(model, finished.policy, features=finished.features)
    if price is not None:
        handle.price = checked_price(price)
    if budget is not None:
        handle.budget = budget
    text = _continued(model, tokenizer, inputs, drawing, seed)
    return {
        "layers": handle.last_routes[0].nonzero().squeeze(1).tolist(),
        "compute": float(handle.last_routes[0].float() @ torch.tensor(handle.flops.shares())) if handle.flops is not None else None,
        "price": handle.price,
        "text": text,
    }


def _on_one_route(folder: Path, prompt: str, drawing: dict[str, Any], seed: int, device: torch.device | str) -> dict[str, Any]:
    """What `generate` returns, of a pruned network."""
    network = load_pruned(folder, device=device)
    stack = network.stack
    if not isinstance(stack, HuggingFaceStack):
        raise UserError(f"the pruned network {folder} has no language model; {NAME_ONE}")
    tokenizer, inputs = _read(stack.model, folder / MODEL, prompt)
    if isinstance(network.adapter, PoolingAdapter):
        raise UserError(f"{folder} answers by a mean over all tokens, and here one follows the other; name the run that it was cut from")
    if network.adapter is not None:
        stack.routed[-1].register_forward_hook(_adapted(network))
    description = Fields.read(folder / DESCRIPTION, FORMAT_VERSION)
    return {
        "layers": list(network.layers),
        "compute": description.object("measured").number("compute"),
        "text": _continued(stack.model, tokenizer, inputs, drawing, seed),
    }


def _adapted(network: PrunedNetwork) -> Any:
    """A hook of the last layer: what the network's adapter makes of the hidden state that it hands on, (B, T, D), alone or first of a tuple."""

    def hook(_module: nn.Module, _args: Any, returned: Any) -> Any:
        assert network.adapter is not None
        if isinstance(returned, Tensor):
            return network.adapter(returned, None)
        return (network.adapter(returned[0], None), *returned[1:])

    return hook


def _read(model: Any, folder: Path, prompt: str) -> tuple[Any, Any]:
    """The tokenizer in a model's folder, and the prompt as tensors.

    Raises:
        UserError: if the model generates no text, or the prompt has no token.
    """
    if not model.can_generate():
        raise UserError(f"the {type(model).__name__} in {folder} generates no text; {NAME_ONE}")
    tokenizer = read_tokenizer(str(folder))
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False).to(model.device)
    if inputs["input_ids"].shape[1] == 0:
        raise UserError("the prompt is empty; give a word to begin with")
    return tokenizer, inputs


def _continued(model: Any, tokenizer: Any, inputs: Any, drawing: dict[str, Any], seed: int) -> str:
    """The prompt and what follows."""
    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            ids = model.generate(**inputs, **drawing)
    except UserError as error:
        raise UserError(f"{error}, on the command line --no-cache" if "use_cache" in str(error) else str(error)) from error
    except Exception as error:  # of models there are many
        raise UserError(_why_not(model, tokenizer, inputs["input_ids"].shape[1], drawing["max_new_tokens"], error)) from error
    text: str = tokenizer.decode(ids[0])
    return text


def _why_not(model: Any, tokenizer: Any, given: int, tokens: int, error: Exception) -> str:
    room = most_tokens(tokenizer, model.config, "the model")
    if room is not None and given + tokens - 1 > room:  # the last one is not read
        most = room + 1 - given
        cure = f"set --tokens, or tokens=, to {most} at most" if most > 0 else "give a shorter prompt"
        return f"the model has room for {room} tokens, the prompt has {given}, and {tokens} are to follow; {cure}"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"the {type(model).__name__} does not generate on this route ({reason}); try fewer --tokens, or --no-cache (cache=False)"
