"""`python -m rl_skip generate`: a run of the task language continues a prompt, on the route that its policy chooses for it."""

from pathlib import Path
from typing import Any

import torch

from rl_skip.attached.attaching import attach
from rl_skip.attached.pretrained import load_model, read_tokenizer
from rl_skip.core.dial import checked_price
from rl_skip.core.errors import UserError
from rl_skip.measure.runs import MODEL, read_run

__all__ = ["generate"]


def generate(
    run: Path,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    price: float | None = None,
    budget: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    allow_code: bool = False,
) -> dict[str, Any]:
    """The continuation of a prompt by the model of a finished run, with its policy attached.

    Args:
        run: the folder of the run.
        prompt: at least a token; the route is chosen on it.
        tokens: how many follow.
        temperature: 0 takes the likeliest token each time; 1 draws from the model's own distribution.
        price, budget: what compute may cost; the policy's operating price by default.
        seed: of the drawing.
        device: where to run.
        allow_code: whether the Python files that the run names may be run, those of its own features.

    Returns:
        The text with its prompt, the layers of the route, and its compute.

    Raises:
        UserError: if the run has no language model, or the prompt no token.
    """
    finished = read_run(run, allow_code=allow_code)
    folder = run / MODEL
    if not folder.is_dir():
        raise UserError(f"the run {run} has no language model; name one that was trained with --task language")
    model: Any = load_model(str(folder)).model.to(device).eval()
    if not model.can_generate():
        raise UserError(f"the {type(model).__name__} of the run {run} generates no text; name a run that was trained with --task language")
    tokenizer = read_tokenizer(str(folder))
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False).to(device)
    if inputs["input_ids"].shape[1] == 0:
        raise UserError("the prompt is empty; give a word to begin with")
    handle = attach(model, finished.policy, features=finished.features)
    if price is not None:
        handle.price = checked_price(price)
    if budget is not None:
        handle.budget = budget
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=tokens, **drawing)
    return {
        "layers": handle.last_routes[0].nonzero().squeeze(1).tolist(),
        "compute": float(handle.last_routes[0].float() @ torch.tensor(handle.flops.shares())) if handle.flops is not None else None,
        "price": handle.price,
        "text": tokenizer.decode(ids[0]),
    }
