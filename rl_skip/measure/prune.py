"""`python -m rl_skip prune`: the best fixed route of a run as a network of its own, for inputs that do not need a policy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rl_skip.core.batches import deployed
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.files import atomic_replace
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs
from rl_skip.core.progress import begin_stage
from rl_skip.core.readouts import Adapter, PoolingAdapter
from rl_skip.core.seal import seal
from rl_skip.core.task import Task, score_key
from rl_skip.core.version import __version__
from rl_skip.export.policy_folder import SkipModel, read_description
from rl_skip.export.pruned import CARD, DESCRIPTION, FORMAT_VERSION, MODEL, WEIGHTS, PrunedNetwork, checked_layers, load_pruned
from rl_skip.export.weights import save_weights
from rl_skip.measure.compare.result import BEST_FIXED
from rl_skip.measure.compare.result import FORMAT_VERSION as COMPARISON_VERSION
from rl_skip.measure.evaluation import SLACK, beside_full_depth, best_fixed_route, evaluate
from rl_skip.measure.runs import load_run, read_run

__all__ = ["prune"]

COMPARED = "compare.json"
SEARCH_ROWS = 1000
"""Validation rows on which the route is searched: 1,000 tell routes apart that differ by two points, and end soon."""


def prune(
    run: Path,
    folder: Path,
    *,
    layers: tuple[int, ...] | None = None,
    budget: float | None = None,
    data: str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Writes the network of a run without the layers that its best fixed route leaves out.

    Args:
        run: the folder of a finished run.
        folder: what to make; it must not exist.
        layers: the layers to keep. None: the best fixed route on validation data within `budget`.
        budget: the largest compute of that route. None: the compute of the run's policy at its operating price, and the
            route is the one that `compare` found, where it was run.
        data: where the data are, if not where the run read them.
        device: where to search and measure.
        batch_size: rows that run together while the network is measured.
        allow_code: as `load_run` takes it.

    Returns:
        Which layers stay, and the score of the pruned network on test data beside full depth and the policy.

    Raises:
        UserError: if there is no finished run, the folder exists, or the layers or the budget are impossible.
    """
    if folder.is_symlink() or folder.exists():
        raise UserError(f"{folder} exists and is left as it is; name another folder")
    model, task = load_run(run, data=data, device=device, allow_code=allow_code)
    if layers is None and budget is None:
        layers = _compared_layers(run)
    if layers is None:
        begin_stage("best fixed route")
        layers = _best_layers(model, task, budget, batch_size)
    layers = checked_layers(layers, model.stack.depth)
    begin_stage("pruned network")
    measured = _measure(model, task, layers, batch_size)
    origin = read_description(run / "policy", read_run(run, allow_code=allow_code).features)
    all_weights = sum(parameter.numel() for parameter in model.stack.parameters())
    removed = sorted(set(range(model.stack.depth)) - set(layers))
    description = {
        "format_version": FORMAT_VERSION,
        "depth": model.stack.depth,
        "width": model.stack.width,
        "layers": list(layers),
        "network": origin.network,
        "trained_on": origin.trained_on,
        "measured": measured,
        "versions": {"rl_skip": __version__, "torch": torch.__version__},
    }
    rows = task.load("validation").take(slice(0, 2)).to(next(model.parameters()).device).inputs
    pruned = _pruned(model, rows, layers)
    weights = sum(parameter.numel() for parameter in pruned.parameters())
    description |= _adapter_plan(pruned.adapter)

    def card(wrote_model: bool) -> str:
        takes_stack = origin.missing is not None and not wrote_model
        return _card(description, removed, takes_stack, task.score_name, speaks=getattr(pruned.stack, "speaks", False))

    _write(folder, pruned, description, rows, card)
    return {"folder": str(folder), "layers": list(layers), "removed": removed, **measured, "weights": weights, "full_depth_weights": all_weights}


def _adapter_plan(adapter: Adapter | None) -> dict[str, Any]:
    """What `load_pruned` needs to know of the adapter before the head."""
    if adapter is None:
        return {}
    plan: dict[str, Any] = {"adapter_rank": adapter.down.out_features}
    if isinstance(adapter, PoolingAdapter):
        plan |= {"adapter_pools": True, **({"adapter_groups": adapter.groups} if adapter.groups else {})}
    return plan


def _write(folder: Path, pruned: PrunedNetwork, description: dict[str, Any], rows: Inputs, card: Callable[[bool], str]) -> None:
    """Makes the folder, whole or not at all.

    Args:
        rows: on which what was written answers as `pruned` does.
        card: its README.md, where told whether the model is written in a form of its own.

    Raises:
        UserError: if the model cannot be written with fewer layers.
    """

    def fill(new: Path) -> None:
        (new / DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        wrote_model = _wrote_model(new / MODEL, pruned)
        beside_model = pruned.adapter if wrote_model else pruned
        if beside_model is not None:
            save_weights(new / WEIGHTS, beside_model.state_dict())
        (new / CARD).write_text(card(wrote_model), encoding="utf-8")
        seal(new, [name for name in (DESCRIPTION, WEIGHTS, CARD) if (new / name).is_file()])  # the model has its own
        if wrote_model:
            _check_written(new, pruned, rows)

    atomic_replace(folder, fill)


def _pruned(model: SkipModel, rows: Inputs, layers: tuple[int, ...]) -> PrunedNetwork:
    """The network of those layers, once a few rows have shown that it answers as the route does."""
    with deployed(model.stack):
        expected = routed_forward(model.stack, _route(layers, model.stack.depth), rows).outputs
        pruned = PrunedNetwork(model.stack, layers)
        same = torch.allclose(pruned(rows), expected, atol=1e-4, rtol=1e-4)
    if not same:
        raise UserError("the model does more after its layers than a readout does, so it is not pruned to a route that leaves early; set --layers")
    return pruned


def _wrote_model(folder: Path, pruned: PrunedNetwork) -> bool:
    """Whether the network is a model that has a form of its own, in which it is written then."""
    try:
        return pruned.stack.write_model(folder)
    except (UserError, OSError, SafetensorError):
        raise
    except Exception as error:  # a configuration may check itself in any way
        raise UserError(_not_alone(pruned, f"cannot be written ({type(error).__name__})")) from error


@torch.no_grad()
def _check_written(folder: Path, pruned: PrunedNetwork, rows: Inputs) -> None:
    """Refuses a model that is another once it is read again: of some the configuration says by a layer's number what the layer is."""
    device = next(pruned.parameters()).device
    expected = pruned.eval()(rows)
    try:
        again = load_pruned(folder, device=device)
        if hasattr(pruned.stack, "prepare"):  # the task's own, which is not written
            again.stack.prepare = pruned.stack.prepare
        found = again(rows)
    except Exception as error:  # whatever a model's own code makes of fewer layers
        reason = " ".join(str(error).replace(f"{folder}/", "").split())[:200]
        raise UserError(_not_alone(pruned, f"cannot be read again ({type(error).__name__}: {reason})")) from error
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-4, rtol=1e-4):
        raise UserError(_not_alone(pruned, "answers otherwise when it is read again") + "; its configuration tells kinds of layers by their number")


def _not_alone(pruned: PrunedNetwork, what: str) -> str:
    kept = ",".join(map(str, pruned.layers))
    model = type(getattr(pruned.stack, "model", pruned.stack)).__name__
    return f"the {model} with layers {kept} alone {what}, so it is not written; set --layers to others, such as the first ones"


def _compared_layers(run: Path) -> tuple[int, ...] | None:
    """The best fixed route that `compare` set beside the policy as exported; None where the run was not compared."""
    if not (run / COMPARED).is_file():
        return None
    operating = Fields.read(run / COMPARED, COMPARISON_VERSION).objects("operating")
    fixed = [baseline for point in operating[:1] for baseline in point.objects("baselines") if baseline.text("name") == BEST_FIXED]
    if not fixed:
        return None
    layers = fixed[0].get("layers")
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise fixed[0].wrong("layers", "a list of layers")
    return tuple(layers)


def _best_layers(model: SkipModel, task: Task, budget: float | None, batch_size: int) -> tuple[int, ...]:
    """The best fixed route on validation data, within the budget or what the policy spends there."""
    validation = task.load("validation").to(next(model.parameters()).device)
    searched = validation.some(SEARCH_ROWS)
    limit = budget or evaluate(model.stack, model.policy, task, validation, price=model.price, batch_size=batch_size).compute
    route = best_fixed_route(model.stack, task, searched, max_compute=limit, allow_exit=model.rules.allow_exit)
    spent = evaluate(model.stack, route, task, searched, batch_size=batch_size).compute
    if budget is not None and spent > budget + SLACK:
        raise UserError(f"no fixed route keeps to a budget of {budget}: the cheapest costs {spent:.4f}; raise --budget, or set --layers")
    return tuple(route.nonzero().squeeze(1).tolist())


def _route(layers: tuple[int, ...], depth: int) -> Tensor:
    """(L,) bool."""
    route = torch.zeros(depth, dtype=torch.bool)
    route[list(layers)] = True
    return route


def _measure(model: SkipModel, task: Task, layers: tuple[int, ...], batch_size: int) -> dict[str, Any]:
    """The route on test data, beside full depth and the policy at its operating price."""
    test = task.load("test").to(next(model.parameters()).device)
    route = _route(layers, model.stack.depth)
    fixed = evaluate(model.stack, route, task, test, batch_size=batch_size)
    policy, full = beside_full_depth(model.stack, model.policy, task, test, price=model.price, batch_size=batch_size)
    key = score_key(task.score_name)
    return {
        key: fixed.score,
        "compute": fixed.compute,
        f"full_depth_{key}": full.score,
        "full_depth_compute": full.compute,
        f"policy_{key}": policy.score,
        "policy_compute": policy.compute,
        "rows": fixed.rows,
        "split": "test",
    }


def _card(description: dict[str, Any], removed: list[int], takes_stack: bool, score_name: str, *, speaks: bool) -> str:
    """`README.md` of a pruned network, which is loaded with the whole network at hand or without."""
    measured, key = description["measured"], score_key(score_name)
    argument = ", stack" if takes_stack else ""
    use = f'import rl_skip\n\nnetwork = rl_skip.load_pruned("path/to/this/folder"{argument})\noutputs = network(inputs)'
    kept, gone = (", ".join(map(str, layers)) for layers in (description["layers"], removed))
    left_out = f"layers {gone} are not in the file" if removed else "none is left out"
    parts = [
        "# A pruned network",
        f"A network of {description['depth']} layers (width {description['width']}) on one fixed route: layers {kept} run for every input, "
        f"{left_out}. It has no policy and no routing. Layers are numbered from 0, as in the whole network.",
        "## Trained on",
        "\n".join(f"- {name}: {value}" for name, value in description["trained_on"].items()) or "Not recorded.",
        f"## {score_name.capitalize()} and compute",
        f"Measured on {measured['rows']} {measured['split']} rows; compute is 1 for all layers of the whole network.",
        "\n".join(
            [
                f"| | {score_name} | mean compute |",
                "| --- | --- | --- |",
                f"| this network | {measured[key]:.4f} | {measured['compute']:.3f} |",
                f"| every layer | {measured[f'full_depth_{key}']:.4f} | {measured['full_depth_compute']:.3f} |",
                f"| the policy | {measured[f'policy_{key}']:.4f} | {measured['policy_compute']:.3f} |",
            ]
        ),
        "## Use",
        f"```python\n{use}\n```",
        "`python -m rl_skip generate path/to/this/folder PROMPT` continues a prompt." if speaks else "",
        "Before its head it has an adapter, which the folder `model` alone does not." if "adapter_rank" in description else "",
        "`network` is an ordinary `torch.nn.Module`." + (argument and " `stack` is the whole network that it was cut from, a `rl_skip.LayerStack`."),
        "Written with " + ", ".join(f"{name} {version}" for name, version in description["versions"].items()) + ".",
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"
