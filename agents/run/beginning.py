"""What is settled before a run begins: whether anything is left to do, in how many processes, and in how many epochs."""

from dataclasses import replace

from rich.console import Console

from agents.options.config import TrainConfig
from agents.run.run_folder import end, is_finished
from rl_skip.core.errors import UserError
from rl_skip.core.processes import together
from rl_skip.core.seal import is_sealed
from rl_skip.core.task import Task

__all__ = ["nothing_left", "print_line", "suited"]


def nothing_left(config: TrainConfig, console: Console) -> bool:
    """Whether the run that is to go on is finished, and told so; else options that cannot be trained with are refused."""
    config.check_prices()
    _check_division(config)
    if config.resume is None:
        return False
    TrainConfig.from_json(config.resume, config.allow_code).refuse_changes(config)
    if is_finished(config.folder, config.agent):
        if together().first and not is_sealed(config.folder):  # the seal alone had failed
            end(config.folder)
        see = config.agent_class.see.format(folder=config.folder)
        print_line(console, f"the run {config.folder} is finished, nothing is left to do; see python -m rl_skip {see}")
        return True
    _refuse_another_number(config)
    return False


def _check_division(config: TrainConfig) -> None:
    """Refuses several processes, and several passes, for an agent whose updates take a whole batch."""
    count = together().count
    if config.agent_class.divides:
        return
    if count > 1:
        raise UserError(f"the agent {config.agent} trains in one process, and {count} were started; start it with python, or set --agent reinforce")
    if config.schedule.accumulate > 1:
        raise UserError(f"the agent {config.agent} takes a batch in one pass; leave --accumulate out, or set --agent reinforce")


def _refuse_another_number(config: TrainConfig) -> None:
    count, begun = together().count, config.processes
    if count != begun:
        said = f"the run {config.folder} was begun in {begun} process{'es' * (begun > 1)}, not {count}"
        raise UserError(f"{said}; go on with {config.resume_command}")


def suited(config: TrainConfig, task: Task, console: Console) -> TrainConfig:
    """The options with as many epochs as suit the number of training rows; says so where that changes them."""
    if config.schedule.max_updates is None:
        return config
    rows = len(task.load("train")) if config.train_rows is None else min(len(task.load("train")), config.train_rows)
    begun, fitting = config.schedule, config.schedule.suited_to(rows)
    if fitting == begun:
        return config
    passes = f"{fitting.epochs} pass{'es' * (fitting.epochs > 1)} in place of {begun.epochs}"
    if begun.warmup_epochs > 0:
        passes = f"{fitting.warmup_epochs} + {fitting.epochs} passes, warm-up and policy, in place of {begun.warmup_epochs} + {begun.epochs}"
    limit = f"{begun.updates(rows):,} updates would be more than {begun.max_updates:,}, and these are {fitting.updates(rows):,}"
    print_line(console, f"{rows:,} training rows: {passes}: {limit}; set --max-updates, --warmup-epochs and --epochs, or --train-rows")
    return replace(config, schedule=fitting)


def print_line(console: Console, line: str) -> None:
    """Prints a line as it is."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)
