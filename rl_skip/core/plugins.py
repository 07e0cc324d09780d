"""Plugins: bundled ones have a name, a person's own is `file.py:name`, and one registry finds both."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from rl_skip.core.errors import UserError

__all__ = ["Registry", "absolute_reference", "is_own", "label_of", "load_own", "made", "own_code", "refuse_code"]

T = TypeVar("T")
_modules: dict[Path, ModuleType] = {}
"""The files that were imported, so that two plugins of one file share their module."""


class Registry(Generic[T]):
    """Things of one kind by their names. Bundled ones are registered; a person's own is found as `file.py:name`.

    Args:
        kind: what they are, for messages, such as "reward".
        flag: the option that names one, such as "--reward".

    Example:
        >>> rewards: Registry[str] = Registry("reward", "--reward")
        >>> rewards.register("linear", "score - price * compute")
        'score - price * compute'
        >>> rewards.names(), rewards.find("linear")
        (('linear',), 'score - price * compute')
    """

    def __init__(self, kind: str, flag: str) -> None:
        self.kind, self.flag = kind, flag
        self._registered: dict[str, T] = {}
        self._lazy: dict[str, str] = {}

    def register(self, name: str, thing: T) -> T:
        """Makes `thing` known by its name. Returns it.

        Raises:
            ValueError: if another thing has that name.
        """
        if name in self._lazy or self._registered.get(name, thing) is not thing:
            raise ValueError(f"there is a {self.kind} {name!r} already; register yours under another name")
        self._registered[name] = thing
        return thing

    def register_lazily(self, name: str, reference: str) -> None:
        """Makes the attribute "package.module:name" known; it is imported on first use."""
        self._lazy[name] = reference

    def names(self) -> tuple[str, ...]:
        """The registered names, in the order in which they were registered."""
        return tuple(dict.fromkeys((*self._lazy, *self._registered)))

    def find(self, reference: str) -> T:
        """The thing that is registered as `reference`, or that `file.py:name` names.

        Raises:
            UserError: if there is none.
        """
        if reference in self._registered:
            return self._registered[reference]
        if reference in self._lazy:
            module, _, attribute = self._lazy[reference].partition(":")
            thing: T = getattr(importlib.import_module(module), attribute)
            return thing
        if not is_own(reference):
            known = ", ".join(self.names())
            raise UserError(f"there is no {self.kind} {reference!r}; set {self.flag} to {known}, or file.py:name for one of your own")
        own: T = load_own(reference, self.kind, self.flag)
        return own


def is_own(reference: str) -> bool:
    """Whether a name has the form of a person's own, `file.py:name`."""
    file, separator, name = reference.rpartition(":")
    return bool(separator and name) and Path(file).suffix == ".py"


def label_of(reference: str) -> str:
    """The name alone, for file names and tables."""
    return reference.rpartition(":")[2] if is_own(reference) else reference


def absolute_reference(reference: str) -> str:
    """The same name with the file's whole path, which holds from every folder; bundled names stay."""
    file, _, name = reference.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if is_own(reference) else reference


def refuse_code(references: Iterable[str], source: Path | str, allow_code: bool) -> None:
    """Refuses a file that names Python files, which are run when what they hold is used, unless the person says so.

    Args:
        references: names of any kind that the file holds.
        source: the file, for messages.
        allow_code: what the person says.

    Raises:
        UserError: naming the Python files.
    """
    files = dict.fromkeys(reference.rpartition(":")[0] for reference in references if is_own(reference))
    if files and not allow_code:
        raise UserError(f"{source} names Python that would be run: {', '.join(files)}; read it, then allow it with --allow-code (allow_code=True)")


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Tells in one line what fails in a person's own code.

    Args:
        what: whose it is, for messages, such as "the reward 'energy'".

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a person's own code can fail in any way
        raise UserError(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())}") from error


def made(found: object, base: type[T], kind: str, flag: str, reference: str) -> T:
    """A thing as it was found, or one of the class that was found, which needs no arguments.

    Args:
        base: the public class of `rl_skip` that it must be of.
        kind: what is expected, for messages.
        flag: the option that named it, for messages.
        reference: what named it, for messages.

    Raises:
        UserError: if it fails when made, or is something else.
    """
    with own_code(f"the {kind} {reference}"):
        thing = found() if isinstance(found, type) else found
    if not isinstance(thing, base):
        raise UserError(f"{reference} is {type(thing).__name__}, not a rl_skip.{base.__name__}; set {flag} to one, or to a class of one")
    return thing


def load_own(reference: str, kind: str, flag: str) -> T:  # type: ignore[type-var]
    """What `file.py:name` names. The file is run once in a process, for all of its names.

    Args:
        kind: what is expected, for messages.
        flag: the option that named it, for messages.

    Raises:
        UserError: if there is no such file, it fails, or it has no such name.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no file {file} with a {kind}; set {flag} to file.py:name")
    module = _imported(path.resolve(), file, kind)
    if not hasattr(module, name):
        raise UserError(f"{file} has no {kind} {name!r}; set {flag} to file.py:name")
    plugin: T = getattr(module, name)
    return plugin


def _imported(path: Path, file: str, kind: str) -> ModuleType:
    if path in _modules:
        return _modules[path]
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations of its dataclasses are looked up there
    try:
        with own_code(f"the file {file} with the {kind}"):
            spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    _modules[path] = module
    return module
