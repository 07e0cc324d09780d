"""The model card that lies beside an exported policy."""

from rl_skip.core.features import FEATURES
from rl_skip.export.description import Description

__all__ = ["model_card"]

SCOPES = {"state": "after every layer", "input": "once, before the first layer"}


def model_card(description: Description, weights: bool) -> str:
    """`README.md` of an export.

    Args:
        weights: whether the network's weights are in the export too.
    """
    rules, layout = description.rules, description.rules.layout
    if rules.jumps:
        does = f"jumps over up to {rules.max_jump} layers at a time" + ("; it may leave before the last layer" if rules.allow_exit else "")
    else:
        does = "goes on to the next layer or leaves" + (", answered by the readout of that depth" if description.readouts is not None else "")
    parts = [
        "# A policy that skips layers",
        f"A policy that decides, for each input, which of a network's {layout.depth} layers (width {layout.width}) to run. It looks "
        f"{SCOPES[rules.scope]} and {does}. "
        + ("The network's weights are in `model.safetensors`." if weights else "The network's weights are not part of this folder."),
        "## Trained on",
        "\n".join(f"- {name}: {value}" for name, value in description.trained_on.items()) or "Not recorded.",
        f"## {description.table.score_name.capitalize()} and compute",
        _table(description),
        f"Operating price: {description.price:.4g}. Reward is {description.reward}; compute is 1 for all layers of the network, "
        f"and the policy's own {'time is' if description.costs else 'operations are'} counted in." + _guarantee(description),
        *_time(description),
        "## Use",
        *_use(description),
        "Written with " + ", ".join(f"{name} {version}" for name, version in description.versions.items()) + ".",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _use(description: Description) -> list[str]:
    network, budget = description.network, ", `{}.budget = 0.5` the mean compute allowed" if description.table.points else ""
    if network is not None and description.attached:
        base = network["base_model"] or f"a {network['model_class']}"
        revision = f", revision {network['revision']}" if network["revision"] else ""
        return [
            f"It belongs to {base}{revision} ({network['model_class']}, layers `{network['layers']}`).",
            '```python\nimport rl_skip\n\nhandle = rl_skip.attach(model, "path/to/this/folder")\noutputs = model(**inputs)\n```',
            f"`handle.price = 0.1` sets the price{budget.format('handle')}; `handle.last_routes` says which layers each row ran.",
        ]
    own = [part.name for part in description.rules.layout.features if part.name not in FEATURES.names()]
    argument = "" if description.missing is None else ", stack"
    argument += ", features=[" + ", ".join(own) + "]" if own else ""
    stack = "" if description.missing is None else " `stack` is the network that the policy was trained on, a `rl_skip.LayerStack`."
    stack += f" The features {', '.join(own)} are its maker's own: pass these `rl_skip.Feature` objects." if own else ""
    return [
        f'```python\nimport rl_skip\n\nmodel = rl_skip.load("path/to/this/folder"{argument})\noutputs = model(inputs)\n```',
        f"`model.price = 0.1` sets the price{budget.format('model')}; `model.last.route` says which layers each row ran."
        + stack,
    ]


def _time(description: Description) -> list[str]:
    """What was measured by the clock, a paragraph each."""
    found = []
    if (costs := description.costs) is not None:
        pays = ", ".join(f"{times.break_even:.2f} at batches of {times.batch_size}" for times in costs.batches)
        found.append(f"Compute is {costs.in_words()}. Deciding for each row pays up to a compute of {pays}.")
    return found + ([" ".join(one.in_words() for one in description.tuned)] if description.tuned else [])


def _guarantee(description: Description) -> str:
    if (promise := description.guarantee) is None:
        return ""
    return f" Guaranteed at price {promise.price:.4g} ({promise.kind}): {promise.in_words(description.table.score_name)}."


def _table(description: Description) -> str:
    if not description.table.points:
        return "Not measured at other prices: the policy was trained for one."
    header = f"| price | mean compute | {description.table.score_name} |"
    rows = [f"| {point.price:.4g} | {point.compute:.3f} | {point.score:.4f} |" for point in description.table.points]
    if description.costs is None:
        return "\n".join(["Measured on validation data:", "", header, "| --- | --- | --- |", *rows])
    full = description.costs.charged.full
    timed = [f"{row} {full * point.compute:.3g} |" for row, point in zip(rows, description.table.points, strict=True)]
    return "\n".join(["Measured on validation data:", "", f"{header} ms for each row |", "| --- | --- | --- | --- |", *timed])
