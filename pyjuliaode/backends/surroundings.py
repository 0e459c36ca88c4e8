"""What a module's code can read: globals, closures, attributes of classes and objects.

Found by names: from the module's ``forward`` on, the globals that the code reads are looked up, and
every name that it mentions in the classes of the module's parts, and in the objects, classes and
Python modules that were found on the way; functions found there are looked into likewise. The
standard library, NumPy, torch and this package count as unchanging, but for ``forward``.
"""

from __future__ import annotations

import dis
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

PLAIN = (int, float, bool, complex, str, bytes, type(None))
_MOST = 5000  # things to look into
_MOST_WITHIN = 256  # of one container
_OURS = __name__.partition(".")[0]
_UNCHANGING = frozenset((*sys.stdlib_module_names, "torch", "numpy", _OURS))
_READ: dict[type, Callable[[Any], list[Any]]] = {
    **dict.fromkeys((list, tuple, set, frozenset), list),
    dict: lambda d: [*d, *d.values()],
}
_EMPTY = object()  # a cell or slot that holds nothing


def reader(value: Any) -> Callable[[Any], list[Any]] | None:
    """What lists the things that a container holds, or the bytes of a small array; None: it is
    none, or too large.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        return _bytes if value.size <= _MOST_WITHIN else None
    kind = next((k for k in type(value).__mro__ if k in _READ), None)
    return None if kind is None or len(value) > _MOST_WITHIN else _READ[kind]


class Source:
    """A place from which values are read, now and later; it keeps no owner alive."""

    def __init__(self, owner: Any, pull: Callable[[Any], Iterable[Any]]):
        try:
            self.owner: Callable[[], Any] = weakref.ref(owner)
        except TypeError:  # of an object with slots
            self.owner = lambda: owner
        self.pull = pull


class Surroundings:
    """What the code of a module can read.

    Attributes:
        modules: the module's parts, and other modules that its code mentions.
        sources: where else it reads.
    """

    def __init__(self, module: nn.Module):
        self.modules: list[nn.Module] = []
        self.sources: list[Source] = []
        self._names = {"forward", "__call__"}
        self._seen: dict[int, Any] = {}
        self._scopes: list[_Scope] = []
        self._ours: list[_Scope] = []  # looked into for the methods that they call
        self._classes: set[type] = set()
        self._visit(module)
        while self._read_more():
            pass
        self.sources += [scope.source() for scope in self._scopes if scope.names]
        self.sources.append(Source([c for c in self._classes if "forward" in vars(c)], _forwards))

    def _read_more(self) -> bool:
        """Look up the names that are known by now; whether anything was new."""
        before = len(self._seen), len(self._names), len(self._scopes)
        for scope in (*self._scopes, *self._ours):
            self._visit_all(scope.more(self._names))
        return before != (len(self._seen), len(self._names), len(self._scopes))

    def _visit_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._visit(value)

    def _visit(self, value: Any) -> None:
        if isinstance(value, PLAIN) or id(value) in self._seen or len(self._seen) >= _MOST:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType):
            if not _unchanging(value.__name__):
                self._scopes.append(_Scope(value, vars))
        elif not isinstance(value, Tensor):
            self._object(value)

    def _module(self, module: nn.Module) -> None:
        self.modules.append(module)
        own = vars(module)
        for held in (own, own["_parameters"], own["_buffers"], own["_modules"]):
            self._visit_all(held.values())
        self._class(type(module))

    def _function(self, function: FunctionType) -> None:
        self._visit(vars(function).get("__wrapped__"))
        if _unchanging(function.__module__):
            if function.__module__.startswith(_OURS):  # it calls methods that a user overrides
                self._mentioned(function.__code__)
            return
        pull = partial(_carried, tuple(self._mentioned(function.__code__)))
        self._scopes.append(_Scope(function, vars))
        self.sources.append(Source(function, pull))
        self._visit_all(pull(function))

    def _mentioned(self, code: CodeType) -> set[str]:
        """The globals that the code reads; what it mentions besides is added to the names."""
        found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        self._names.update(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                found |= self._mentioned(constant)
            elif isinstance(constant, str) and constant.isidentifier():  # getattr(x, "name")
                self._names.add(constant)
        return found

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if base in self._classes:
                continue
            self._classes.add(base)
            if not _unchanging(base.__module__):
                self._scopes.append(_Scope(base, vars, base.__mro__))
            elif base.__module__.startswith(_OURS):
                self._ours.append(_Scope(base, vars))

    def _object(self, value: Any) -> None:
        if isinstance(value, (property, staticmethod, classmethod, MethodType)):
            self._visit_all(getattr(value, x, None) for x in ("fget", "__func__", "__self__"))
            return
        if isinstance(value, partial):
            self.sources.append(Source(value, _applied))
            self._visit_all(_applied(value))
        self._visit(inspect.getattr_static(value, "__wrapped__", None))  # of functools.cache
        read = reader(value)
        self._visit_all(() if read is None else read(value))
        if _attributes(value) is not None:
            self._scopes.append(_Scope(value, _attributes, type(value).__mro__))
        if slots := _slots(type(value)):
            self._scopes.append(_Scope(value, partial(_filled, slots)))
        self._class(type(value))


class _Scope:
    """Names and their values: of globals, a Python module, a class, an object.

    ``related`` are classes whose names would be shadowed by one that is set here later.
    """

    def __init__(
        self,
        owner: Any,
        table: Callable[[Any], Mapping[str, Any]],
        related: Iterable[type] = (),
    ):
        self.owner, self._table = owner, table
        self._related = [vars(c) for c in related if not _unchanging(c.__module__)]
        self.names: dict[str, None] = {}

    def more(self, names: set[str]) -> list[Any]:
        """Values of those of ``names`` that are new here."""
        table = self._table(self.owner)
        places = (table, *self._related)
        new = [n for n in names if n not in self.names and any(n in place for place in places)]
        self.names.update(dict.fromkeys(new))
        return [table[name] for name in new if name in table]

    def source(self) -> Source:
        table, names = self._table, tuple(self.names)
        return Source(self.owner, lambda owner: map(table(owner).get, names))


def _unchanging(name: object) -> bool:
    return isinstance(name, str) and name.partition(".")[0] in _UNCHANGING


def _bytes(array: Any) -> list[bytes]:
    return [array.tobytes()]


def _attributes(value: Any) -> dict[str, Any] | None:
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else None


def _slots(kind: type) -> dict[str, MemberDescriptorType]:
    return {
        name: member
        for base in kind.__mro__
        if not _unchanging(base.__module__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }


def _filled(slots: Mapping[str, MemberDescriptorType], value: Any) -> dict[str, Any]:
    return {name: _held(member, value) for name, member in slots.items()}


def _carried(names: Sequence[str], function: FunctionType) -> list[Any]:
    """What a function reads: defaults, globals of these names, and the values of its closure."""
    known = function.__globals__
    return [
        *(function.__code__, function.__defaults__, function.__kwdefaults__),
        *map(known.get, names),
        *(_held(CellType.cell_contents, cell) for cell in function.__closure__ or ()),
    ]


def _applied(function: partial) -> list[Any]:
    return [function.func, function.args, function.keywords]


def _forwards(classes: Sequence[type]) -> list[Any]:
    return [vars(c).get("forward") for c in classes]


def _held(place: Any, value: Any) -> Any:
    try:
        return place.__get__(value)
    except (AttributeError, ValueError):
        return _EMPTY
