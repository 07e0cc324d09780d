"""The words that the figures lead to."""

from dataclasses import replace

from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.result import BEST_FIXED, POLICY, SHUFFLED, BaselineResult, BatchTime, Interval, Operating, Verdict
from rl_skip.measure.compare.verdict import judge


def baseline(name: str, lead: float, *, title: str = "", compute: float = 0.4, spread: float = 0.004, p: float | None = None) -> BaselineResult:
    """A baseline that the policy, at 90%, leads by so much; the test agrees with the interval unless p says otherwise. A title: it is trained."""
    interval = Interval(lead, lead - spread, lead + spread)
    p = (0.001 if interval.low > 0 or interval.high < 0 else 0.5) if p is None else p
    layers = (0, 1, 3, 4, 7) if name == BEST_FIXED else None
    record = BaselineRecord(name, title or name, advice=f"train it with train.py --agent {name}" if title else "")
    return BaselineResult(record, "one", compute, Interval(0.9 - lead, 0.89 - lead, 0.91 - lead), interval, p, layers)


def operating(*baselines: BaselineResult, budget: float | None = None, cheap: BaselineResult | None = None) -> Operating:
    policy = baseline(POLICY, 0.0, spread=0.0)
    fixed = next((one for one in baselines if one.record.name == BEST_FIXED), None)
    return Operating(budget, (0.1,), 0.4, (policy, *baselines), None, {}, 3.0, 1.0, cheap or fixed)


def verdict(*places: Operating, times: tuple[BatchTime, ...] = ()) -> Verdict:
    return judge("runs/digits", 8, places, times)


def test_a_policy_that_beats_the_best_fixed_route_is_to_be_used() -> None:
    found = verdict(operating(baseline(BEST_FIXED, 0.013)))
    assert found.use == POLICY
    assert found.sentences[0] == "the policy beats the best fixed route at compute 0.4 by 1.3 ± 0.4 points; use it."


def test_a_fixed_route_that_is_as_good_names_the_layers_to_leave_out() -> None:
    found = verdict(operating(baseline(BEST_FIXED, 0.002)))
    assert found.use == "fixed"
    command = "`python -m rl_skip prune runs/digits DIR` writes the network without layers 2, 5 and 6, with no policy and no routing"
    assert "a fixed route is as good here, 0.2 ± 0.4 points apart" in found.sentences[0] and command in found.sentences[0]


def test_a_budget_that_the_policy_cannot_reach_shows_what_a_fixed_route_has_there() -> None:
    below = replace(operating(baseline(BEST_FIXED, -0.3, compute=0.2), budget=0.2), reached=False)
    found = verdict(operating(baseline(BEST_FIXED, 0.013)), below)
    assert found.use == POLICY and sum("budget" in sentence for sentence in found.sentences) == 1
    assert "At a budget of 0.2: the policy spends at least 0.4; a fixed route has 120.0% at compute 0.2." in found.sentences
    alone = verdict(operating(baseline(BEST_FIXED, 0.013)), replace(operating(budget=0.2), reached=False))
    assert "At a budget of 0.2: the policy spends at least 0.4." in alone.sentences


def test_a_lead_that_only_one_of_interval_and_test_supports_is_none() -> None:
    assert verdict(operating(baseline(BEST_FIXED, 0.013, p=0.07))).use == "fixed"


def test_where_a_trained_baseline_is_better_a_fixed_route_that_is_only_as_good_is_not_advised() -> None:
    found = verdict(operating(baseline(BEST_FIXED, 0.0), baseline("exits", -0.02, title="confidence exits", compute=0.38)))
    assert found.use == "exits"
    assert "confidence exits is better" in found.sentences[0] and not any("prune" in sentence for sentence in found.sentences)


def test_a_trained_baseline_that_is_better_is_named_even_where_the_policy_beats_the_fixed_route() -> None:
    found = verdict(operating(baseline(BEST_FIXED, 0.02), baseline("static", -0.02, title="fixed route, retrained", compute=0.38)))
    assert found.use == "static"
    assert "but a baseline beats it" in found.sentences[0]
    assert found.sentences[1] == "fixed route, retrained is better by 2.0 ± 0.4 points at compute 0.38: train it with train.py --agent static."
    bound = verdict(operating(baseline(BEST_FIXED, 0.02), baseline("oracle", -0.05)))
    assert bound.use == POLICY, "the oracle is a bound, nothing to use"


def test_a_fixed_route_that_spends_more_and_is_no_better_does_not_win() -> None:
    exported = operating(baseline(BEST_FIXED, 0.013))
    dear, cheap = baseline(BEST_FIXED, 0.0, compute=0.75), baseline(BEST_FIXED, 0.013)
    found = verdict(exported, operating(dear, budget=0.75, cheap=cheap))
    assert found.use == POLICY and not any("budget of 0.75" in sentence for sentence in found.sentences)


def test_a_budget_at_which_another_way_is_better_is_told() -> None:
    exported = operating(baseline(BEST_FIXED, 0.013))
    better = baseline(BEST_FIXED, -0.01, compute=0.75)
    found = verdict(exported, operating(better, budget=0.75, cheap=baseline(BEST_FIXED, 0.013)))
    told = [sentence for sentence in found.sentences if sentence.startswith("At a budget of 0.75: ")]
    assert found.use == POLICY and len(told) == 1
    assert "a fixed route is better here, by 1.0 ± 0.4 points" in told[0] and "prune runs/digits DIR --layers 0,1,3,4,7`" in told[0]


def test_it_is_said_whether_the_policy_looks_and_where_skipping_is_slow() -> None:
    times = (BatchTime(1, 1.0, 1.5, 1.2, 0.2, 0.3), BatchTime(64, 10.0, 5.0, 4.0, 0.2, 0.8))
    found = verdict(operating(baseline(BEST_FIXED, 0.013), baseline(SHUFFLED, 0.1)), times=times)
    assert "On routes chosen for other rows the policy loses 10.0 ± 0.4 points: it looks at its input." in found.sentences
    slow = [sentence for sentence in found.sentences if "slower than full depth" in sentence]
    assert slow == ["Skipping is slower than full depth in batches of 1: 1.50 ms against 1.00 ms; it would pay below a compute of 0.3."]
    blind = verdict(operating(baseline(BEST_FIXED, 0.013), baseline(SHUFFLED, 0.001)))
    assert any("does not look at its input" in sentence for sentence in blind.sentences)
