"""`python -m rl_skip`: measure a run, compare it with its baselines, export its policy, prune its network, describe a folder."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

from rl_skip.attached.identity import WEIGHTS
from rl_skip.cli.export import export_graphs, export_policy
from rl_skip.cli.generate import generate
from rl_skip.cli.passes import showing_progress
from rl_skip.cli.streams import check_words, outlasting_readers
from rl_skip.cli.values import budget, budget_of_table, count, layers, price, seed, tolerance
from rl_skip.core.devices import pick_device
from rl_skip.core.dial import GuaranteeKind
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.task import Split, score_key
from rl_skip.export import pruned
from rl_skip.export.graphs import folder as graphs
from rl_skip.export.graphs import pack, routes
from rl_skip.export.graphs.routes import GraphFormat
from rl_skip.export.policy_folder import DESCRIPTION as POLICY_FILE
from rl_skip.export.policy_folder import MODEL, POLICY, read_description
from rl_skip.export.weights import count_weights
from rl_skip.measure.compare.command import compare_and_write
from rl_skip.measure.compare.comparison import BUDGETS
from rl_skip.measure.compare.result import Comparison
from rl_skip.measure.compare.text import terminal
from rl_skip.measure.evaluation import beside_full_depth
from rl_skip.measure.guarantee import guarantee
from rl_skip.measure.prune import prune
from rl_skip.measure.runs import POLICY as POLICY_FOLDER
from rl_skip.measure.runs import is_run, load_run, read_config, read_run
from rl_skip.tasks.data_report import read_data_report

__all__ = ["Parser", "carry_out", "compare_parser", "compare_runs", "console", "main"]

Report = dict[str, Any]
COMPARE = "set a policy beside full depth, fixed routes, trained baselines and the oracle, and advise what to use"
BUDGET = "the mean compute allowed, in (0, 1], or more where compute is measured time; looks the price up in the policy's table"
DESCRIBED = "a run, an exported policy, a pruned network, or a folder of graphs"
OTHER_KINDS = {
    "pruned network": (pruned.DESCRIPTION, pruned.FORMAT_VERSION),
    "pack": (pack.DESCRIPTION, graphs.FORMAT_VERSION),
    "graphs": (routes.DESCRIPTION, graphs.FORMAT_VERSION),
}
"""Folders that are described beside a run and an exported policy: the file that says what each holds, and its newest format."""
Command = Callable[[argparse.Namespace], Report | Comparison]


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after the program's name; those of the process by default.

    Returns:
        0, or 2 for a user's mistake and 1 for numbers that are not finite, or where what it shows cannot be written; printed in one line on
        standard error.
    """
    return carry_out(_parser(), argv)


def carry_out(parser: "Parser", argv: Sequence[str] | None = None) -> int:
    """Runs the command that a parser reads from the words, and prints what it reports; quietly to the end where nobody reads that."""
    with outlasting_readers() as shown:
        code = _carry_out(parser, argv)
        shown.flush()
        return code or int(shown.lost)


def _carry_out(parser: "Parser", argv: Sequence[str] | None) -> int:
    try:
        check_words(sys.argv[1:] if argv is None else argv)
        arguments = parser.parse_args(argv)
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        command: Command = arguments.command
        with showing_progress():
            report = command(arguments)
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 2
    if arguments.json:
        print(json.dumps(report.to_json() if isinstance(report, Comparison) else report, ensure_ascii=False))
    elif isinstance(report, Comparison):
        print(terminal(report))
    else:
        _print_table(report)
    return 0


def console() -> NoReturn:
    """The console script."""
    sys.exit(main())


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def _parser() -> Parser:
    parser = Parser(prog="rl-skip", description="Measure, export and describe what train.py wrote.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    measure = _command(commands, "eval", _eval, "run a trained network on its data and report score and compute")
    _add_run(measure)
    measure.add_argument("--split", choices=("validation", "test"), default="test", help="which rows to measure on (default: %(default)s)")
    measure.add_argument("--data", help="where the data are, if not where the run read them")
    dial = measure.add_mutually_exclusive_group()
    text = "the price λ, in score per unit of relative compute; higher skips more (default: the policy's operating price)"
    dial.add_argument("--price", type=price, help=text)
    dial.add_argument("--budget", type=budget_of_table, help=BUDGET)
    text = "the smallest compute that loses at most so much score against full depth (0.01: one point), found on validation data"
    dial.add_argument("--guarantee", type=tolerance, metavar="TOLERANCE", help=text)
    text = "confidence: kept for all but one draw of validation rows in twenty; expectation: kept on average, with fewer rows (default: confidence)"
    measure.add_argument("--guarantee-kind", choices=get_args(GuaranteeKind), help=text)
    measure.add_argument("--batch-size", type=count, default=256, help="rows that run together (default: %(default)s)")
    measure.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to run (default: %(default)s)")

    _add_compare_options(_command(commands, "compare", _compare, COMPARE), "what train.py alone does: python train.py compare RUN --train-baselines")

    text = "copy a run's policy, checked, into a folder of its own; or write its routed network as graphs"
    copy = _command(commands, "export", _export, text)
    _add_run(copy)
    copy.add_argument("folder", type=Path, metavar="DIR", help="the folder to make; it must not exist")
    text = "onnx: graphs that onnxruntime runs alone, with the policy inside; torch-export: a route that all rows share (default: the policy's files)"
    copy.add_argument("--format", choices=get_args(GraphFormat), help=text)
    graph = copy.add_mutually_exclusive_group()
    graph.add_argument("--layers", type=layers, help="one graph of a route that all rows share, such as 0,3,7, without the policy")
    graph.add_argument("--exits", action="store_true", help="a graph for each layer after which all rows leave, without the policy")
    graph.add_argument("--one-row", action="store_true", help="one ONNX graph for one row at a time (default: a pack, for batches)")
    copy.add_argument("--data", help="where the data are on which graphs are traced and checked, if not where the run read them")

    cut = _command(
        commands, "prune", _prune, "write the network without the layers that its best fixed route leaves out, with no policy and no routing"
    )
    _add_run(cut)
    cut.add_argument("folder", type=Path, metavar="DIR", help="the folder to make; it must not exist")
    route = cut.add_mutually_exclusive_group()
    text = "the largest compute of the route, in (0, 1]; the route is searched on validation data (default: the compute of the policy)"
    route.add_argument("--budget", type=budget, help=text)
    route.add_argument("--layers", type=layers, help="the layers to keep, such as 0,3,7; layer 0 is always one")
    cut.add_argument("--data", help="where the data are, if not where the run read them")
    cut.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to search and measure (default: %(default)s)")

    continuing = _command(commands, "generate", _generate, "continue a prompt with a run of the task language, or its pruned network")
    _add_run(continuing)
    continuing.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    continuing.add_argument("--tokens", type=count, default=200, help="how many follow (default: %(default)s)")
    text = "0 takes the likeliest token each time, 1 draws from the model's distribution (default: %(default)s)"
    continuing.add_argument("--temperature", type=price, default=0.8, help=text)
    continuing.add_argument("--seed", type=seed, default=0, help="of the drawing (default: %(default)s)")
    text = "go through the whole text for each token, for models whose cache cannot do without some layers"
    continuing.add_argument("--no-cache", action="store_true", help=text)
    turned = continuing.add_mutually_exclusive_group()
    text = "the price λ, in score per unit of relative compute (default: the policy's operating price)"
    turned.add_argument("--price", type=price, help=text)
    turned.add_argument("--budget", type=budget_of_table, help=BUDGET)
    continuing.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to run (default: %(default)s)")

    describe = _command(commands, "info", _info, f"describe {DESCRIBED}")
    describe.add_argument("folder", type=Path, metavar="DIR", help=DESCRIBED)
    return parser


def _add_run(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The run that a command reads, and what may be done for it."""
    text = "the folder of a finished run" + ("; several that differ in their seed alone" if several else "")
    parser.add_argument("run", type=Path, nargs="+" if several else None, metavar="RUN", help=text)
    text = "run the Python files that RUN names, those of a task, stack, reward or feature of one's own; read them before, if RUN is not yours"
    parser.add_argument("--allow-code", action="store_true", help=text)


def _command(commands: Any, name: str, function: Command, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False)
    _add_common_options(parser, function)
    return parser


def _add_common_options(parser: argparse.ArgumentParser, function: Command) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--threads", type=count, help="threads that PyTorch may use on the CPU")
    parser.set_defaults(command=function)


def compare_parser(program: str, function: Command, training: str) -> Parser:
    """The command `compare` as a program of its own.

    Args:
        function: what it does.
        training: the help of --train-baselines.
    """
    parser = Parser(prog=program, description=COMPARE[0].upper() + COMPARE[1:] + ".", allow_abbrev=False)
    _add_common_options(parser, function)
    _add_compare_options(parser, training)
    return parser


def _add_compare_options(parser: argparse.ArgumentParser, training: str) -> None:
    _add_run(parser, several=True)
    text = "mean computes to compare at, each in (0, 1], besides the policy as exported (default: 0.25 0.5 0.75)"
    parser.add_argument("--budgets", type=budget, nargs="+", default=BUDGETS, help=text)
    text = "run folders of more baselines than those in RUN/baselines; trained on the same data"
    parser.add_argument("--baselines", type=Path, nargs="+", default=[], metavar="DIR", help=text)
    text = "a baseline of your own that needs no training, a rl_skip.MeasuredBaseline; may be given several times"
    parser.add_argument("--baseline", action="append", default=[], metavar="FILE.PY:NAME", help=text)
    parser.add_argument("--train-baselines", action="store_true", help=training)
    parser.add_argument("--rows", type=count, help="rows of each split to measure on, drawn at random (default: all)")
    parser.add_argument("--data", help="where the data are, if not where the run read them")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to measure (default: %(default)s)")


def _eval(arguments: argparse.Namespace) -> Report:
    device = pick_device(arguments.device)
    run, turned = arguments.run, {"price": arguments.price, "budget": arguments.budget}
    model, task = load_run(run, data=arguments.data, **turned, device=device, changed=_warn, allow_code=arguments.allow_code)
    split: Split = arguments.split
    promise: Report = {}
    if arguments.guarantee is not None:
        kind: GuaranteeKind = arguments.guarantee_kind or "confidence"
        rows, options = task.load("validation").to(device), {"kind": kind, "batch_size": arguments.batch_size}
        given = guarantee(model.stack, model.policy, task, rows, model.table, model.price, arguments.guarantee, **options)
        model.price = given.price
        promise = {"guarantee": given.tolerance, "guarantee_kind": given.kind, "guarantee_price": given.price, "guarantee_rows": given.rows}
    elif arguments.guarantee_kind is not None:
        raise UserError(f"without a tolerance there is no guarantee in {arguments.guarantee_kind}; set --guarantee, 0.01 for one point")
    examples = task.load(split).to(device)
    options = {"price": model.price, "reward": read_run(run, allow_code=arguments.allow_code).reward, "batch_size": arguments.batch_size}
    measured, full_depth = beside_full_depth(model.stack, model.policy, task, examples, **options)
    key = score_key(task.score_name)
    return {
        key: measured.score,
        "compute": measured.compute,
        "reward": measured.reward,
        "price": model.price,
        "rows": measured.rows,
        "split": split,
        f"full_depth_{key}": full_depth.score,
        "distinct_routes": measured.distinct_routes,
        **task.measures(measured.correct),
        **promise,
    }


def _warn(sentence: str) -> None:
    print("note:", sentence, file=sys.stderr)


def _compare(arguments: argparse.Namespace) -> Comparison:
    if arguments.train_baselines:
        runs = " ".join(shlex.quote(str(run)) for run in arguments.run)
        raise UserError(f"only train.py trains; from the checkout: python train.py compare {runs} --train-baselines")
    return compare_runs(arguments)[0]


def compare_runs(arguments: argparse.Namespace) -> tuple[Comparison, list[Path]]:
    """Compares as the options of `compare_parser` say. Returns the comparison and the pictures of it."""
    return compare_and_write(
        arguments.run,
        budgets=arguments.budgets,
        baselines=arguments.baselines,
        own=arguments.baseline,
        rows=arguments.rows,
        data=arguments.data,
        device=pick_device(arguments.device),
        allow_code=arguments.allow_code,
    )


def _export(arguments: argparse.Namespace) -> Report:
    form: GraphFormat | None = arguments.format
    asked = {"layers": arguments.layers, "exits": arguments.exits, "one_row": arguments.one_row, "data": arguments.data}
    if form is not None:
        return export_graphs(arguments.run, arguments.folder, form, **asked, allow_code=arguments.allow_code)
    if given := next((name for name, value in asked.items() if value), None):
        raise UserError(f"--{given.replace('_', '-')} is for graphs; set --format onnx or --format torch-export too")
    return export_policy(arguments.run, arguments.folder, allow_code=arguments.allow_code)


def _prune(arguments: argparse.Namespace) -> Report:
    return prune(
        arguments.run,
        arguments.folder,
        layers=arguments.layers,
        budget=arguments.budget,
        data=arguments.data,
        device=pick_device(arguments.device),
        allow_code=arguments.allow_code,
    )


def _generate(arguments: argparse.Namespace) -> Report:
    return generate(
        arguments.run,
        arguments.prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        price=arguments.price,
        budget=arguments.budget,
        seed=arguments.seed,
        cache=not arguments.no_cache,
        device=pick_device(arguments.device),
        allow_code=arguments.allow_code,
    )


def _info(arguments: argparse.Namespace) -> Report:
    folder: Path = arguments.folder
    for kind, (name, version) in OTHER_KINDS.items():
        if (folder / name).is_file():
            return {"kind": kind, "folder": str(folder), **Fields.read(folder / name, version).values}
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name {DESCRIBED}")
    if not is_run(folder) and not (folder / POLICY_FILE).is_file():
        raise UserError(f"{folder} is nothing that rl_skip wrote; name {DESCRIBED}")
    config = read_config(folder) if is_run(folder) else None
    export = folder if config is None else folder / POLICY_FOLDER
    description = read_description(export, None)
    network_weights = count_weights(export / MODEL) if (export / MODEL).is_file() else None
    policy_weights = count_weights(export / POLICY)
    settings = {} if config is None else {"run": config.values, **_data(folder)}
    return {
        "kind": "export" if config is None else "run",
        "folder": str(folder),
        **settings,
        "policy": description.to_json(),
        "policy_weights": policy_weights,
        "network_weights": network_weights,
    }


def _data(folder: Path) -> Report:
    """What a run read, in short; nothing of runs that did not note it."""
    splits, remarks = read_data_report(folder)
    return {"data": {**{split: str(report) for split, report in splits.items()}, "remarks": list(remarks)}} if splits else {}


def _print_table(report: Report) -> None:
    rows = list(_flat(_in_short(report), ""))
    widest = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{widest}}  {value}")


def _in_short(report: Report) -> Report:
    """The report, but for the numbers by which a policy knows its model: how many weights they are of."""
    policy = report.get("policy")
    network = policy.get("network") if isinstance(policy, dict) else None
    if not (isinstance(policy, dict) and isinstance(network, dict) and WEIGHTS in network):
        return report
    return report | {"policy": policy | {"network": network | {WEIGHTS: f"a few numbers of each of {len(network[WEIGHTS])}"}}}


def _flat(value: Any, name: str) -> Any:
    """Pairs of dotted names and short texts."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for n, inner in enumerate(value):
            yield name + f"[{n}]", ", ".join(f"{key} {_short(item)}" for key, item in inner.items())
    else:
        yield name, (", ".join(map(_short, value)) or "none") if isinstance(value, list) else _short(value)


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
