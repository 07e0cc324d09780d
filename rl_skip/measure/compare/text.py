"""A comparison in words and tables, for the terminal and for `compare.md`."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from rl_skip.measure.compare.result import FULL_DEPTH, POLICY, BaselineResult, Comparison, Interval, Operating
from rl_skip.measure.compare.verdict import leads, trails

__all__ = ["REPORT", "markdown", "terminal"]

REPORT = "compare.md"
"""Where the first run's folder holds the whole report."""
Table = list[list[str]]
MARKS = "+ marks a baseline of higher {score} than the policy, - one of lower {score}, by interval and paired test"

ABOUT = """\
Everything is measured on test data; prices, routes and points of curves were chosen on validation data.
*Compute* is 1 for all layers of the network; a policy's decisions are counted in. ± is half of a 95% bootstrap interval over rows{seeds}.

{curves}
- *lead*: the policy's {score} minus the baseline's, row by row. *p*: exact McNemar test with one run; with several, signs of rows flipped at random.
- *area*: mean {score} over all budgets from 0.2 to 1, each answered with the point that validation data choose within it; where none is that
  cheap, with what answers without a network, such as the most frequent class.
- *share of the oracle's gap*: (policy - best fixed route) / (oracle - best fixed route), in {reward} at the policy's price.
- *break-even*: the compute below which the policy is faster than full depth, estimated from what layers and decisions took.
"""
TRAINED = """\
Baselines with a training of their own have networks of their own, with the same data, start and number of updates unless noted.
A policy's network learns from its own full depth besides (`--distillation-weight`), theirs from labels alone.
"""
SPENDING = "A baseline may spend the budget, or what the policy spends where that is more, and 0.02 besides; a control has the policy's price."


def terminal(comparison: Comparison) -> str:
    """What the command prints."""
    return "\n\n".join(
        [
            _title(comparison),
            _aligned(_score_table(comparison)) + f"\n{MARKS.format(score=comparison.score_name)}",
            _aligned(_policy_table(comparison)),
            _aligned(_time_table(comparison)),
            *(["\n".join(f"note: {note}" for note in comparison.notes)] if comparison.notes else []),
            "\n".join(["verdict:", *(f"  {sentence}" for sentence in comparison.verdict.sentences)]),
            f"more in {Path(comparison.runs[0]) / REPORT}",
        ]
    )


def markdown(comparison: Comparison, figures: Iterable[Path] = ()) -> str:
    """`compare.md`.

    Args:
        figures: pictures to show, relative to the file.
    """
    parts = [
        f"# {_title(comparison)}",
        "## Verdict",
        "\n".join(f"- {sentence[0].upper()}{sentence[1:]}" for sentence in comparison.verdict.sentences),
        *(f"![{figure.stem}]({figure.as_posix()})" for figure in figures),
        f"## {comparison.score_name.capitalize()} at compute",
        _piped(_score_table(comparison)),
        MARKS.format(score=comparison.score_name) + ".",
        *(_leads_section(point) for point in comparison.operating),
        "## The policy",
        _piped(_policy_table(comparison)),
        "## Time",
        _piped(_time_table(comparison)),
        "## What this means",
        _about(comparison),
        *(["## Notes", "\n".join(f"- {note}" for note in comparison.notes)] if comparison.notes else []),
        "Runs: " + ", ".join(f"`{run}`" for run in comparison.runs) + f". Compared in {comparison.seconds:.0f} s.",
    ]
    return "\n\n".join(parts) + "\n"


def _about(comparison: Comparison) -> str:
    records = [curve.record for curve in comparison.curves]
    curves = "\n".join(f"- *{record.title}*: {record.about}." for record in records if record.about)
    trained = [TRAINED.rstrip()] if any(record.trained for record in records) else []
    seeds = " and seeds" if len(comparison.seeds) > 1 else ""
    about = ABOUT.format(seeds=seeds, curves=curves, score=comparison.score_name, reward=comparison.reward).rstrip()
    return "\n\n".join([about, " ".join([SPENDING, *trained])])


def _title(comparison: Comparison) -> str:
    seeds = ("seeds " if len(comparison.seeds) > 1 else "seed ") + ", ".join(map(str, comparison.seeds))
    return f"{comparison.task}: a policy for {comparison.depth} layers beside its baselines, {comparison.rows} test rows, {seeds}"


def _score_table(comparison: Comparison) -> Table:
    rows = [[f"{comparison.score_name} at compute", *map(_budget_label, comparison.operating), "area 0.2 to 1"]]
    for curve in comparison.curves:
        cells = [_cell(point, point.baseline(curve.record.name)) for point in comparison.operating]
        rows.append([curve.record.title, *cells, "" if curve.record.name == FULL_DEPTH else _percent(curve.area)])
    return rows


def _cell(point: Operating, baseline: BaselineResult | None) -> str:
    if baseline is None:
        return ""
    if not point.reached:
        return _least(point) if baseline.record.name == POLICY else f"{_percent(baseline.score)} at {baseline.compute:.3f}"
    mark = "+" if trails(baseline) else "-" if leads(baseline) else " "
    return f"{_percent(baseline.score)} at {baseline.compute:.3f}{mark}".rstrip()


def _least(point: Operating) -> str:
    return f"no less than {point.baselines[0].compute:.3f}"


def _leads_section(point: Operating) -> str:
    if not point.reached:
        others = [["beside a policy that cannot", "point", "compute", "score"]]
        others += [[one.record.title, one.label, f"{one.compute:.3f}", _percent(one.score)] for one in point.baselines[1:]]
        return f"### {_budget_label(point).capitalize()}: the policy spends {_least(point)}\n\n{_piped(others)}"
    rows = [["the policy beside", "point", "compute", "lead", "95% interval", "p"]]
    for baseline in point.baselines:
        if baseline.record.name != POLICY:
            interval = f"{100 * baseline.lead.low:+.1f} to {100 * baseline.lead.high:+.1f}"
            lead = f"{100 * baseline.lead.value:+.1f}"
            rows.append([baseline.record.title, baseline.label, f"{baseline.compute:.3f}", lead, interval, f"{baseline.p_value:.2g}"])
    policy, label = point.baselines[0], _budget_label(point)
    return f"### {label[0].upper()}{label[1:]}: {policy.score.value:.1%} at {policy.compute:.3f}\n\n{_piped(rows)}"


def _policy_table(comparison: Comparison) -> Table:
    shown = comparison.operating
    titles = {curve.record.name: curve.record.title for curve in comparison.curves}
    rows = [
        ["the policy", *map(_budget_label, shown)],
        ["price", *(", ".join(f"{price:.3g}" for price in point.prices) for point in shown)],
        ["compute, validation", *(f"{point.validation_compute:.3f}" for point in shown)],
        ["compute, test", *(f"{point.baselines[0].compute:.3f}" for point in shown)],
        ["test compute - budget", *("" if point.budget is None else f"{point.baselines[0].compute - point.budget:+.3f}" for point in shown)],
        ["distinct routes", *(f"{point.distinct_routes:g}" for point in shown)],
        ["entropy of routes, bits", *(f"{point.route_entropy:.2f}" for point in shown)],
    ]
    rows += [[f"reward, {titles[name]}", *(f"{point.rewards[name]:.4f}" for point in shown)] for name in shown[0].rewards]
    if any(point.gap_closed for point in shown):
        rows.append(["share of the oracle's gap", *(_share(point.gap_closed) for point in shown)])
    return rows


def _time_table(comparison: Comparison) -> Table:
    rows = [["time of a batch", "full depth", "policy", "its own share", "break-even compute"]]
    for time in comparison.times:
        size = f"{time.batch_size} row{'s' if time.batch_size > 1 else ''}"
        rows.append([size, f"{time.full_depth:.2f} ms", f"{time.policy:.2f} ms", f"{time.policy_share:.0%}", f"{time.break_even:.2f}"])
    return rows


def _budget_label(point: Operating) -> str:
    return "as exported" if point.budget is None else f"budget {point.budget:g}"


def _share(gap: Interval | None) -> str:
    """Of a gap; of one that is hardly there no share can be told."""
    if gap is None:
        return ""
    return _percent(gap) if gap.half_width <= 1 else "gap too small"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ± {100 * interval.half_width:.1f}%"


def _aligned(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip_longest(*table, fillvalue="")]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in table]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _piped(table: Sequence[Sequence[str]]) -> str:
    head, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([head, "| --- |" + " ---: |" * (len(table[0]) - 1), *rows])
