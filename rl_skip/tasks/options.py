"""How a task reads its data, and which model it is for; the options of `train.py` and of a run's `config.json`."""

from dataclasses import dataclass

from rl_skip.errors import UserError
from rl_skip.fields import Fields

__all__ = ["NO_MODEL", "TaskOptions"]

NO_MODEL = "none"


@dataclass(frozen=True)
class TaskOptions:
    """The model that is trained, and where texts and labels stand in the data."""

    model: str = NO_MODEL
    """Folder of a model from transformers to train on text, speech or images; "none": a network is built and trained from scratch."""
    text_column: str | None = None
    """text: the column of the texts. Default: sentence or text."""
    label_column: str = "label"
    """text: the column of the labels."""
    train_file: str | None = None
    """text: the file to train on, such as train_phrases.tsv.gz, in the folder of --data. Default: train with .tsv, .csv or either with .gz."""
    validation_file: str | None = None
    """text: the file to validate on. Default: validation, valid or dev; without one, a part of the training file."""
    test_file: str | None = None
    """text: the file to test on. Default: test; without one, a part of the training file."""
    max_tokens: int = 128
    """text: tokens of a text after which it is cut off; language: tokens of a row. More sees further and costs more; 64 to 512."""
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

    @classmethod
    def read(cls, fields: Fields) -> "TaskOptions":
        """The options in a run's `config.json`, each checked; those of runs from before there were any are the defaults."""
        if "options" not in fields.values:
            return cls()
        options = fields.object("options")
        texts = {name: options.text_or_none(name) for name in ("text_column", "train_file", "validation_file", "test_file")}
        numbers = {name: options.integer(name) for name in ("max_tokens", "prompt_tokens")}
        return cls(model=options.text("model"), label_column=options.text("label_column"), **texts, **numbers)  # type: ignore[arg-type]
