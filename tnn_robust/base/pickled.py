"""Arrays, lists and dicts out of a pickle without unpickling it.

CIFAR-10 is published as pickles, and torch keeps in one what its tensors are. `pickletools`
cuts one into opcodes, and the few that its data are made of are carried out here, on plain
values: no class is made, nothing is called, and memory goes with the file, whose memo places
and lengths are not believed.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError

_TEXT = frozenset(("BINUNICODE", "SHORT_BINUNICODE"))
_BYTES = frozenset(("BINBYTES", "SHORT_BINBYTES"))
_OLD_TEXT = frozenset(("BINSTRING", "SHORT_BINSTRING"))  # Python 2's, which is bytes
_NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class Name(NamedTuple):
    """A function or class that a pickle names; it is never looked up."""

    module: str
    name: str


ARRAY = Name("numpy.core.multiarray", "_reconstruct")
DTYPE = Name("numpy", "dtype")
STORED = Name("", "persistent id")  # an object that lies beside the pickle, by its id


class Vocabulary(NamedTuple):
    """What a pickle may name, and which of these it may call."""

    known: frozenset[Name]
    called: frozenset[Name]


NUMPY = Vocabulary(frozenset((ARRAY, DTYPE, Name("numpy", "ndarray"))), frozenset((ARRAY, DTYPE)))


class Made:
    """What a pickle says of an object: what makes it, of which arguments, and its state."""

    def __init__(self, by: Name, arguments: tuple[Any, ...]):
        self.by, self.arguments = by, arguments
        self.state: Any = None

    def array(self) -> np.ndarray:
        """The uint8 array it describes. Raises ValueError for anything else."""
        if self.by != ARRAY or not (isinstance(self.state, tuple) and len(self.state) == 5):
            raise ValueError("it is none")
        _, shape, dtype, fortran, content = self.state
        of_bytes = isinstance(dtype, Made) and dtype.by == DTYPE and dtype.arguments[:1]
        if of_bytes not in ((b"u1",), ("u1",)) or not isinstance(content, bytes):
            raise ValueError("its data are not bytes")
        if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
            raise ValueError("its shape is none")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def plain_content(pickled: bytes, words: Vocabulary = NUMPY) -> Any:
    """The dicts, lists, tuples, numbers, texts and `Made` of a pickle.

    Raises DataError for other names than `words` has, by default those of numpy's arrays, and
    ValueError and its like for what is torn or made of more than data.
    """
    (found,) = _run(pickled, words).stack
    return found


def objects_of(pickled: bytes, words: Vocabulary) -> list[Made]:
    """Every `Made` of a pickle, wherever it is put; raises as `plain_content`."""
    return _run(pickled, words).made


def _run(pickled: bytes, words: Vocabulary) -> "_Machine":
    machine = _Machine(words)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        machine.step(opcode.name, argument, number)
    return machine


class _Machine:
    """The stack and the memo of the pickle machine."""

    def __init__(self, words: Vocabulary) -> None:
        self.words = words
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made: list[Made] = []
        self._do: dict[str, Callable[[], None]] = {
            "STACK_GLOBAL": lambda: self._name(*reversed((self._pop(str), self._pop(str)))),
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "BINPERSID": lambda: self.stack.append(Made(STORED, self._pop(tuple))),
            "TUPLE": lambda: self.stack.append(tuple(self._above_mark())),
            "LIST": lambda: self.stack.append(self._above_mark()),
            "DICT": lambda: self._set_items(self._above_mark(), {}),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "EMPTY_DICT": lambda: self.stack.append({}),
            "APPEND": lambda: self._extend([self.stack.pop()]),
            "APPENDS": lambda: self._extend(self._above_mark()),
            "SETITEM": lambda: self._set_items(list(reversed((self._pop(), self._pop())))),
            "SETITEMS": lambda: self._set_items(self._above_mark()),
            "MARK": lambda: self.stack.append(_MARK),
        }

    def step(self, name: str, argument: Any, number: int) -> None:
        """Carry out the opcode of this number."""
        if name in self._do:
            self._do[name]()
        elif name in _NUMBERS or name in _TEXT or name in _BYTES:
            self.stack.append(argument)
        elif name in _OLD_TEXT:
            self.stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(reversed([self._pop() for _ in range(_TUPLES[name])])))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self._name(*argument.split(" ", 1))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"step {number} of it is a {name}, which data have none of")

    def _pop(self, kind: type = object) -> Any:
        found = self.stack.pop()
        if found is _MARK or not isinstance(found, kind):
            raise ValueError("its steps do not fit together")
        return found

    def _above_mark(self) -> list[Any]:
        found: list[Any] = []
        while (one := self.stack.pop()) is not _MARK:
            found.append(one)
        return found[::-1]

    def _name(self, module: str, name: str) -> None:
        found = Name(module, name)
        if found not in self.words.known:
            raise DataError(f"it asks for {module}.{name}, which is not allowed")
        self.stack.append(found)

    def _reduce(self) -> None:
        arguments, by = self._pop(tuple), self._pop(Name)
        if by not in self.words.called:
            raise ValueError(f"it calls {by.module}.{by.name}")
        self.made.append(made := Made(by, arguments))
        self.stack.append(made)

    def _build(self) -> None:
        state = self._pop()
        self.stack.append(made := self._pop(Made))
        made.state = state

    def _extend(self, items: list[Any]) -> None:
        self.stack.append(into := self._pop(list))
        into += items

    def _set_items(self, items: list[Any], fresh: dict[Any, Any] | None = None) -> None:
        into = self._pop() if fresh is None else fresh
        self.stack.append(into)
        if isinstance(into, Made):  # a mapping of a class of its own: told by its maker alone
            return
        if not isinstance(into, dict):
            raise ValueError("its steps do not fit together")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, bytes | str | int):  # a tuple can take forever to hash
                raise ValueError("a key of its dict is no text")
            into[key] = value
