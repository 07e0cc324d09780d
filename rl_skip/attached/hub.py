"""A policy on the Hugging Face hub, with the model that it routes, by the conventions of transformers and peft."""

from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from torch import nn

from rl_skip.attached.identity import marked
from rl_skip.attached.library import quiet, require
from rl_skip.attached.names import is_read
from rl_skip.core.errors import UserError
from rl_skip.core.seal import SEAL, seal

__all__ = ["POLICY_FOLDER", "push"]

POLICY_FOLDER = "policy"
"""Where the policy is, in a repository that has its model at the top, where transformers looks for it."""
CARD = "README.md"


class Saved(Protocol):
    """What is pushed: the handle of an attached policy."""

    model: nn.Module
    processor: Any

    def model_weights(self) -> dict[str, Any]:
        """The model's weights by their names."""
        ...

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Writes the policy."""
        ...


def push(handle: Saved, repo_id: str, *, include_model: bool, commit_message: str | None, **options: Any) -> str:
    """Writes a policy into a repository, as `Handle.push_to_hub` describes it. Returns the commit's address."""
    if include_model and (not hasattr(handle.model, "save_pretrained") or hasattr(handle.model, "get_base_model")):
        raise UserError(
            f"a {type(handle.model).__name__} is not written as a model of transformers: merge its adapters and attach again, "
            "or push the policy alone, include_model=False"
        )
    with TemporaryDirectory() as parent:
        folder = Path(parent, "repository")
        with marked(handle.model) if include_model else nullcontext():
            handle.save_pretrained(folder / POLICY_FOLDER if include_model else folder)
            if include_model:
                with quiet():
                    handle.model.save_pretrained(folder, state_dict=handle.model_weights())  # type: ignore[operator]
        if include_model and handle.processor is not None:
            handle.processor.save_pretrained(folder)
        policy = folder / POLICY_FOLDER if include_model else folder
        card = (policy / CARD).read_text(encoding="utf-8")
        for part in {policy, folder}:  # but the cards, which people edit on the hub
            seal(part, sorted(file.name for file in part.iterdir() if file.is_file() and file.name not in (CARD, SEAL) and is_read(file.name)))
        (folder / CARD).write_text(_front(repo_id) + card, encoding="utf-8")
        return _upload(folder, repo_id, commit_message or "Upload policy", **options)


def _upload(
    folder: Path, repo_id: str, commit_message: str, *, private: bool | None, token: str | bool | None, revision: str | None, **options: Any
) -> str:
    """Puts the files of a folder into a repository, which is made where it is missing, and so is the branch."""
    try:
        api = require("huggingface_hub").HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision, **options))
    except UserError:
        raise
    except Exception as error:  # other people's code, and the network
        reason = " ".join(str(error).split())
        advice = "log in with hf auth login or give a token=, and name a repository that you may write to"
        raise UserError(f"{repo_id} on the Hugging Face hub cannot be written ({type(error).__name__}: {reason[:200]}); {advice}") from None


def _front(repo_id: str) -> str:
    """What the hub reads of a model card, and how the repository is loaded."""
    return (
        "---\nlibrary_name: rl-skip\ntags:\n- rl-skip\n- early-exit\n---\n\n"
        f'```python\nimport rl_skip\n\nhandle = rl_skip.from_pretrained("{repo_id}")\noutputs = handle.model(**inputs)\n```\n\n'
    )
