"""The verdict: what a comparison means for the user, in words."""

from collections.abc import Iterable

from rl_skip.measure.compare.result import BEST_FIXED, POLICY, SHUFFLED, BaselineResult, BatchTime, Operating, Verdict

__all__ = ["LEVEL", "judge", "leads", "trails"]

LEVEL = 0.05


def leads(baseline: BaselineResult) -> bool:
    """Whether the policy scores higher: the interval of its lead lies above 0 and the paired test says so at 5%."""
    return baseline.lead.low > 0 and baseline.p_value < LEVEL


def trails(baseline: BaselineResult) -> bool:
    """Whether the policy scores lower, likewise."""
    return baseline.lead.high < 0 and baseline.p_value < LEVEL


def judge(run: str, depth: int, operating: tuple[Operating, ...], times: Iterable[BatchTime]) -> Verdict:
    """The verdict on a policy as exported, and what changes at the budgets.

    The policy is worth using where it beats the best fixed route of its own network, and no baseline with an advice of its own beats it.

    Args:
        operating: as exported first.
    """
    exported = operating[0]
    use = _best(exported)
    better = _better_baselines(exported)
    pruning = use not in (POLICY, BEST_FIXED) and _fixed(exported) is not None  # is no advice beside a baseline that is better
    sentences = better if pruning else [_headline(run, depth, exported, use), *better]
    for point in operating[1:]:
        if not point.reached:
            sentences.append(_unreached(point))
            continue
        changed = _best(point)
        if changed != use:
            sentences.append(f"At a budget of {point.budget:g}: {_headline(run, depth, point, changed)}")
        sentences += [f"At a budget of {point.budget:g}: {sentence}" for sentence in _better_baselines(point) if sentence not in sentences]
    sentences += [_looking(exported), *_slow(times)]
    return Verdict(use, tuple(sentences))


def _unreached(point: Operating) -> str:
    said = f"At a budget of {point.budget:g}: the policy spends at least {point.baselines[0].compute:.3g}"
    fixed = point.baseline(BEST_FIXED)
    return f"{said}." if fixed is None else f"{said}; a fixed route has {fixed.score.value:.1%} at compute {fixed.compute:.3g}."


def _best(point: Operating) -> str:
    better = [baseline for baseline in point.baselines if baseline.record.advice and trails(baseline)]
    if better:
        return max(better, key=lambda baseline: baseline.score.value).record.name
    return POLICY if _fixed(point) is None else BEST_FIXED


def _fixed(point: Operating) -> BaselineResult | None:
    """The fixed route to prefer to the policy: one that is better within the budget, or as good for no more compute; None if neither is."""
    within = point.baseline(BEST_FIXED)
    if within is not None and trails(within):
        return within
    return point.fixed_as_cheap if point.fixed_as_cheap is not None and not leads(point.fixed_as_cheap) else None


def _headline(run: str, depth: int, point: Operating, use: str) -> str:
    fixed, compute = _fixed(point), point.baselines[0].compute
    if fixed is None:
        advice = "use it" if use == POLICY else "but a baseline beats it"
        if point.fixed_as_cheap is None:
            return f"no fixed route is as cheap as the policy, at compute {compute:.3g}; {advice}."
        return f"the policy beats the best fixed route at compute {compute:.3g} by {_points(point.fixed_as_cheap)}; {advice}."
    assert fixed.layers is not None
    left_out = [i for i in range(depth) if i not in fixed.layers]
    state = f"is better here, by {_points(fixed)}" if trails(fixed) else f"is as good here, {_points(fixed)} apart"
    state = f"a fixed route {state} ({fixed.score.value:.1%} at compute {fixed.compute:.3g})"
    if not left_out:
        return f"{state}: it runs every layer, so leave the policy away."
    choice = "" if point.budget is None else " --layers " + ",".join(map(str, fixed.layers))  # as exported, prune looks it up
    return f"{state}: `python -m rl_skip prune {run} DIR{choice}` writes the network without {_layers(left_out)}, with no policy and no routing."


def _better_baselines(point: Operating) -> list[str]:
    return [
        f"{baseline.record.title} is better by {_points(baseline)} at compute {baseline.compute:.3g}: {baseline.record.advice}."
        for baseline in point.baselines
        if baseline.record.advice and trails(baseline)
    ]


def _looking(point: Operating) -> str:
    shuffled = point.baseline(SHUFFLED)
    if shuffled is None or not leads(shuffled):
        return "Routes chosen for other rows serve as well as a row's own: the policy does not look at its input, or gains nothing by it."
    return f"On routes chosen for other rows the policy loses {_points(shuffled)}: it looks at its input."


def _slow(times: Iterable[BatchTime]) -> list[str]:
    slow = [time for time in times if time.policy >= time.full_depth]
    return [
        f"Skipping is slower than full depth in batches of {time.batch_size}: {time.policy:.2f} ms against {time.full_depth:.2f} ms"
        + (f"; it would pay below a compute of {time.break_even:.2g}." if time.break_even > 0 else ".")
        for time in slow
    ]


def _points(baseline: BaselineResult) -> str:
    """How far apart policy and baseline are, in hundredths of score."""
    return f"{abs(100 * baseline.lead.value):.1f} ± {100 * baseline.lead.half_width:.1f} points"


def _layers(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
