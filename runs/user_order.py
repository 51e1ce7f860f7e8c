"""A user's own order: found by its name, checked by the contract, made afresh for every run.

`module:MyOrder` is a module in the current folder or on the path, `path/to/file.py:MyOrder` a file.
Only a command line or a Python call can name one: a scenario is data, and data runs no code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from policy import contract
from policy.errors import ConfigError
from policy.orders.base import Order
from policy.orders.catalog import ORDERS
from policy.orders.guard import Guarded, Maker, maker_of
from policy.views import Draw
from runs import user_order_sources as order_sources
from traces.strict import reason, shown, shown_path


@dataclass(frozen=True)
class UserOrder:
    """A user's order that kept the contract.

    `name` (`module:MyOrder`) is what recordings call it. `source_hash` is of the file it is in, or of
    its own text if there is no file (a notebook); None if there is neither. `text`: what finds it in
    another process; None for an object, which stays in this one. `folder`: where that process looks
    for the module, wherever it runs. `holds`: names of what an Order given as an object has in it.
    """

    name: str
    source_hash: str | None
    text: str | None
    _maker: Maker
    folder: str | None = None
    holds: tuple[str, ...] = ()
    _module: ModuleType | None = None

    def make(self, draw: Draw) -> Order:
        """A fresh one for a run. Raises ConfigError."""
        try:
            return Guarded(self.name, self._maker(draw))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"order {self.name}: making it raised {reason(error)}") from error

    @property
    def facts(self) -> dict[str, str | None]:
        """For provenance."""
        return {"name": self.name, "source_hash": self.source_hash}

    def sources(self) -> dict[str, str]:
        """What kept results depend on: its name, and the hash of its file with the neighbours that
        it imports (of the text of a cell). Raises ConfigError if that cannot be told."""
        if self.holds:
            raise ConfigError(
                f"order {self.name}: an object with values of its own ({', '.join(self.holds)}) is not"
                " told by its source; give the class, or a function that makes it"
            )
        found = self.source_hash
        path = getattr(self._module, "__file__", None)
        if self._module is not None and path is not None:
            is_of_package = self.folder is not None and ".py:" not in (self.text or "")
            root = Path(self.folder or "") if is_of_package else Path(path).parent
            found = order_sources.hash_of(self._module, root)
        if found is None:
            raise ConfigError(
                f"order {self.name}: its source cannot be read, so results under it cannot be told"
                " from those of another; put it into a file or a notebook's cell"
            )
        return {"name": self.name, "sources": found}


#: A name with a colon, an Order, a class or function that makes one, or one that was checked before.
OrderLike = str | Order | Callable[..., Order] | UserOrder


def user_order(
    given: OrderLike, *, is_checked: bool = False, folder: str | None = None
) -> UserOrder:
    """The order that `given` names or is, after the contract suite.

    `is_checked`: another process has run the suite. `folder`: where a module is, if not here. Raises
    ConfigError naming what cannot be found or what is broken.
    """
    if isinstance(given, UserOrder):
        return given
    if isinstance(given, str) and given in ORDERS:
        raise ConfigError(f"order: {given} is built in; a scenario names it, `order: {given}`")
    if isinstance(given, str):
        base = Path.cwd() if folder is None else Path(folder)
        thing, module = _named(given, base)
        where, _, attribute = given.rpartition(":")
        name = f"{Path(where).stem if where.endswith('.py') else where}:{attribute}"
        home = str(base) if where.endswith(".py") else _folder_of(where, module)
        loaded = UserOrder(
            name, _hash_of_file(module), given, maker_of(thing), home, _module=module
        )
    else:
        thing = given
        kind = type(given) if isinstance(given, Order) else given
        name = f"{_text_of(kind, '__module__')}:{_text_of(kind, '__qualname__')}"
        holds = tuple(sorted(vars(given))) if isinstance(given, Order) else ()
        module_of = sys.modules.get(_text_of(kind, "__module__"))
        loaded = UserOrder(
            name, _hash_of_object(kind), None, maker_of(given), holds=holds, _module=module_of
        )
    if not is_checked:
        contract.check(thing, name)
    return loaded


def _text_of(kind: Any, attribute: str) -> str:
    found = getattr(kind, attribute, None)
    return found if isinstance(found, str) else type(kind).__name__


# ---------------------------------------------------------------------- finding


def _named(text: str, base: Path) -> tuple[Any, ModuleType]:
    where, colon, attribute = text.rpartition(":")
    if not colon or not where or not attribute:
        raise ConfigError(
            f"order: {shown(text)!r} is neither one of {', '.join(ORDERS)} nor module:MyOrder nor"
            " path/to/file.py:MyOrder"
        )
    is_file = where.endswith(".py")
    try:
        module = _from_file(base / where, where) if is_file else _from_path(where, base)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"order: {shown(where, 300)}: importing it raised {type(error).__name__}:"
            f" {reason(error)}"
        ) from error
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"order: {shown(where, 300)} has no {shown(attribute)}")
        found = getattr(found, name)
    return found, module


def _from_path(name: str, base: Path) -> ModuleType:
    """A module in the folder `base` or on the path."""
    with _folder_first(base):
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"order: no module {shown(name)} in {shown_path(base)} or on the path; a file"
                " is named with its ending, like orders.py:MyOrder"
            ) from None


def _folder_of(name: str, module: ModuleType) -> str | None:
    """The folder in which a module of that name is found; None if it is in no file."""
    path = getattr(module, "__file__", None)
    if path is None:
        return None
    depth = name.count(".") + (Path(path).name == "__init__.py")
    return str(Path(path).resolve().parents[depth])


def _from_file(path: Path, text: str) -> ModuleType:
    """A file as a module of its stem's name, read anew; `text` is what the user calls it."""
    if not path.is_file():
        raise ConfigError(f"order: {shown_path(Path(text))} is not a file")
    name = path.stem
    taken = sys.modules.get(name)
    if taken is not None and not _is_of(taken, path):
        name = f"{name}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        with _folder_first(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_of(module: ModuleType, path: Path) -> bool:
    return os.path.realpath(getattr(module, "__file__", None) or "") == os.path.realpath(path)


@contextmanager
def _folder_first(folder: Path) -> Iterator[None]:
    """Neighbours of the user's module can be imported by it."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


# ---------------------------------------------------------------------- whose source


def _hash_of_file(module: ModuleType) -> str | None:
    path = getattr(module, "__file__", None)
    try:
        return None if path is None else _hash(Path(path).read_bytes())
    except OSError:
        return None


def _hash_of_object(kind: Any) -> str | None:
    """Of its module's file, or of the text of a notebook's cell."""
    module = sys.modules.get(getattr(kind, "__module__", None) or "")
    found = None if module is None else _hash_of_file(module)
    if found is not None:
        return found
    text = order_sources.text_of(kind)
    return None if text is None else _hash(text.encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
