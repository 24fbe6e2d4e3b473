"""A pickle interpreter that calls nothing that a file names.

Python's unpickler imports and calls everything that the file names. This one interprets protocols 2 to 5 (PEP 307,
3154, 574) with a table of our builders. Every other global becomes an inert `Placeholder`. Opcodes that torch's files
do not use are refused, as are files that would exceed a budget of objects.
"""

import dataclasses
import pickle
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

# For comparison, a checkpoint of 1,300 tensors takes 60,000 opcodes and 20,000 containers.
_MAX_OPCODES = 2_000_000
_MAX_OBJECTS = 1_000_000
_MAX_NAME = 1000  # characters of a module's or class's name
_MAX_INT_BYTES = 128
# A file can choose numeric keys with colliding hashes, unlike strings. AdamW's state has one per parameter.
_MAX_CHOSEN_KEYS = 20_000
_MAX_KEY_PARTS = 16


class Refused(ValueError):
    """The pickle is damaged, or asks for something that is not allowed."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function that the file names; never imported."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


class Placeholder:
    """An object that the file would create by calling `function`; nothing is called.

    Attributes:
      function: the callable: a `Global`, or another placeholder.
      args: tuple of arguments of the call.
      state: the state to set on the object, or None.
      items: values to append.
      entries: values to set by key.
    """

    __slots__ = ("args", "entries", "function", "items", "state")

    def __init__(self, function, args):
        self.function, self.args = function, args
        self.state, self.items, self.entries = None, [], {}

    def set_state(self, state):
        """Record the state that the file would set."""
        self.state = state

    def __repr__(self):
        return f"<{self.function if isinstance(self.function, Global) else 'object'} of a torch file>"


class Reserved:
    """Base class of builder results with a `set_state(state)` method."""

    def set_state(self, state):
        raise NotImplementedError


def unpickle(
    data: memoryview,
    builders: Mapping[tuple[str, str], Callable],
    hashing: Collection[Callable],
    persistent_load: Callable[[Any], Any],
) -> tuple[Any, int]:
    """The value pickled at the start of `data`, and the number of bytes read.

    Args:
      data: the pickle, possibly followed by other bytes.
      builders: `(module, name)` to a function of the arguments, which must be safe for any arguments.
      hashing: the builders that hash their arguments. Their first argument is a function that checks keys.
      persistent_load: returns the object of a persistent id. It must be safe for any id.

    Raises:
      Refused: the pickle is damaged or not allowed.
    """
    machine = _Machine(data, builders, hashing, persistent_load)
    try:
        return machine.run(), machine.position
    except Refused as error:
        raise Refused(f"{error} (at byte {machine.position} of the pickle)") from None
    except (RecursionError, MemoryError, ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        what = f"{type(error).__name__}: {error}"[:200]
        raise Refused(f"{what} (at byte {machine.position} of the pickle)") from None


class _Machine:
    def __init__(self, data, builders, hashing, persistent_load):
        self.position = 0
        self._data, self._builders, self._persistent_load = data, builders, persistent_load
        self._hashing = hashing
        self._stack, self._marks, self._memo = [], [], []
        self._objects = self._chosen_keys = 0

    def run(self):
        if bytes(self._data[:1]) != pickle.PROTO:
            raise Refused("it is not a pickle of protocol 2 to 5")
        for _ in range(_MAX_OPCODES):
            opcode = self._take(1)
            if opcode == pickle.STOP:
                if self._marks or len(self._stack) != 1:
                    raise Refused("it ends in the middle of a value")
                return self._stack.pop()
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise Refused(f"opcode {opcode!r} is not allowed in a checkpoint")
            handler(self)
        raise Refused(f"it has more than {_MAX_OPCODES:,} opcodes")

    # Reading

    def _take(self, count):
        end = self.position + count
        if end > len(self._data):
            raise Refused("it is cut short")
        taken = bytes(self._data[self.position : end])
        self.position = end
        return taken

    def _number(self, form):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self):
        window = bytes(self._data[self.position : self.position + _MAX_NAME + 1])
        end = window.find(b"\n")
        if end < 0:
            raise Refused("a name has no end")
        self.position += end + 1
        return window[:end].decode()

    # The stack

    def _push(self, value):
        self._stack.append(value)

    def _pop(self):
        # Values below a mark belong to the outer value.
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Refused("a value is missing")
        return self._stack.pop()

    def _top(self):
        self._push(value := self._pop())
        return value

    def _pop_mark(self):
        if not self._marks:
            raise Refused("a mark is missing")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _charge(self, count=1):
        self._objects += count
        if self._objects > _MAX_OBJECTS:
            raise Refused(f"it creates more than {_MAX_OBJECTS:,} objects")

    def _push_new(self, value, size=0):
        self._charge(1 + size)
        self._push(value)

    # Opcodes

    def _protocol(self):
        protocol = self._take(1)[0]
        if not 2 <= protocol <= 5:
            raise Refused(f"its protocol {protocol} is not one of 2 to 5")

    def _frame(self):
        if self._number("<Q") > len(self._data) - self.position:
            raise Refused("a frame is cut short")

    def _mark(self):
        self._marks.append(len(self._stack))

    def _discard(self):
        # A mark on top is popped like a value.
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _integer(self, form):
        length = self._number(form)
        if not 0 <= length <= _MAX_INT_BYTES:
            raise Refused(f"an integer has {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _text(self, form):
        self._push(self._take(self._number(form)).decode("utf-8", "surrogatepass"))

    def _text_of_python2(self, form):
        self._push(self._take(self._number(form)).decode("latin-1"))

    def _bytes(self, form):
        self._push(self._take(self._number(form)))

    def _bytearray(self):
        self._push_new(bytearray(self._take(self._number("<Q"))))

    def _tuple(self, values):
        self._push_new(tuple(values), len(values))

    def _list(self):
        values = self._pop_mark()
        self._push_new(values, len(values))

    def _dict(self):
        values = self._pop_mark()
        self._push_new({})
        self._set_items(values)

    def _frozenset(self):
        values = self._pop_mark()
        self._push_new(frozenset(self._key(value) for value in values), len(values))

    def _append(self, values):
        target = self._top()
        self._charge(len(values))
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Placeholder):
            target.items.extend(values)
        else:
            raise Refused(f"a {type(target).__name__} is appended to")

    def _add(self):
        values = self._pop_mark()
        target = self._top()
        self._charge(len(values))
        if isinstance(target, set):
            target.update(self._key(value) for value in values)
        elif isinstance(target, Placeholder):
            target.items.extend(values)
        else:
            raise Refused(f"a {type(target).__name__} is added to")

    def _set_item(self):
        value = self._pop()
        self._set_items([self._pop(), value])

    def _set_items(self, values):
        target = self._top()
        self._charge(len(values) // 2)
        entries = target.entries if isinstance(target, Placeholder) else target
        if not isinstance(entries, dict) or len(values) % 2:
            raise Refused(f"keys are set on a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[self._key(key)] = value

    def _key(self, key):
        if isinstance(key, tuple) and len(key) > _MAX_KEY_PARTS:
            raise Refused(f"a tuple of {len(key)} is a key")
        for part in key if isinstance(key, tuple) else (key,):
            if not (part is None or isinstance(part, (str, bytes, int, float, Global, Placeholder))):
                raise Refused(f"a {type(part).__name__} is a key")
        if isinstance(key, (tuple, int, float)):
            self._chosen_keys += 1
            if self._chosen_keys > _MAX_CHOSEN_KEYS or (isinstance(key, int) and abs(key) >= 2**61 - 1):
                raise Refused("its keys are too many, or too large, numbers")
        return key

    def _memoize(self, index):
        # Picklers number their memo consecutively. Arbitrary numbers could collide in a table.
        if index > len(self._memo):
            raise Refused(f"value {index} is stored in the memo after {len(self._memo)} others")
        self._memo[index : index + 1] = [self._top()]

    def _recall(self, form):
        self._push(self._memo[self._number(form)])

    def _global(self, module, name):
        if not (isinstance(module, str) and isinstance(name, str)) or max(len(module), len(name)) > _MAX_NAME:
            raise Refused("the name of a class is not a string")
        self._push_new(Global(module, name))

    def _stack_global(self):
        name = self._pop()
        self._global(self._pop(), name)

    def _call(self, with_keywords=False):
        keywords = self._pop() if with_keywords else {}
        args = self._pop()
        function = self._pop()
        if not isinstance(args, tuple) or not isinstance(keywords, dict):
            raise Refused("a call has no arguments")
        if not isinstance(function, (Global, Placeholder)):
            raise Refused(f"a {type(function).__name__} is called")
        builder = None
        if isinstance(function, Global):
            builder = self._builders.get((function.module, function.name))
        self._charge(1 + _size(args))
        if builder is None:
            self._push(Placeholder(function, (*args, keywords) if keywords else args))
        elif keywords:
            raise Refused(f"{function} is called with keywords")
        else:
            self._push(builder(self._key, *args) if builder in self._hashing else builder(*args))

    def _build(self):
        state = self._pop()
        target = self._top()
        self._charge(_size(state) if isinstance(state, tuple) else 0)
        if isinstance(target, (Placeholder, Reserved)):
            target.set_state(state)
        elif not isinstance(target, dict):  # state dicts carry version numbers as attributes
            raise Refused(f"a state is set on a {type(target).__name__}")

    def _persistent(self):
        self._push(self._persistent_load(self._pop()))


def _size(args):
    """Number of elements that a builder may copy from its arguments."""
    return sum(len(arg) // (256 if isinstance(arg, (str, bytes, bytearray)) else 1) for arg in args if _is_sized(arg))


def _is_sized(arg):
    return isinstance(arg, (str, bytes, bytearray, list, tuple, dict, set, frozenset))


_HANDLERS = {
    pickle.PROTO: _Machine._protocol,
    pickle.FRAME: _Machine._frame,
    pickle.MARK: _Machine._mark,
    pickle.POP: _Machine._discard,
    pickle.POP_MARK: _Machine._pop_mark,
    pickle.DUP: lambda m: m._push(m._top()),
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.BININT: lambda m: m._push(m._number("<i")),
    pickle.BININT1: lambda m: m._push(m._number("<B")),
    pickle.BININT2: lambda m: m._push(m._number("<H")),
    pickle.LONG1: lambda m: m._integer("<B"),
    pickle.LONG4: lambda m: m._integer("<i"),
    pickle.BINFLOAT: lambda m: m._push(m._number(">d")),
    pickle.SHORT_BINUNICODE: lambda m: m._text("<B"),
    pickle.BINUNICODE: lambda m: m._text("<I"),
    pickle.BINUNICODE8: lambda m: m._text("<Q"),
    pickle.SHORT_BINSTRING: lambda m: m._text_of_python2("<B"),
    pickle.BINSTRING: lambda m: m._text_of_python2("<I"),
    pickle.SHORT_BINBYTES: lambda m: m._bytes("<B"),
    pickle.BINBYTES: lambda m: m._bytes("<I"),
    pickle.BINBYTES8: lambda m: m._bytes("<Q"),
    pickle.BYTEARRAY8: _Machine._bytearray,
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.TUPLE1: lambda m: m._tuple([m._pop()]),
    pickle.TUPLE2: lambda m: m._tuple([m._pop(), m._pop()][::-1]),
    pickle.TUPLE3: lambda m: m._tuple([m._pop(), m._pop(), m._pop()][::-1]),
    pickle.TUPLE: lambda m: m._tuple(m._pop_mark()),
    pickle.EMPTY_LIST: lambda m: m._push_new([]),
    pickle.LIST: _Machine._list,
    pickle.APPEND: lambda m: m._append([m._pop()]),
    pickle.APPENDS: lambda m: m._append(m._pop_mark()),
    pickle.EMPTY_DICT: lambda m: m._push_new({}),
    pickle.DICT: _Machine._dict,
    pickle.SETITEM: _Machine._set_item,
    pickle.SETITEMS: lambda m: m._set_items(m._pop_mark()),
    pickle.EMPTY_SET: lambda m: m._push_new(set()),
    pickle.ADDITEMS: _Machine._add,
    pickle.FROZENSET: _Machine._frozenset,
    pickle.BINPUT: lambda m: m._memoize(m._number("<B")),
    pickle.LONG_BINPUT: lambda m: m._memoize(m._number("<I")),
    pickle.MEMOIZE: lambda m: m._memoize(len(m._memo)),
    pickle.BINGET: lambda m: m._recall("<B"),
    pickle.LONG_BINGET: lambda m: m._recall("<I"),
    pickle.GLOBAL: lambda m: m._global(m._line(), m._line()),
    pickle.STACK_GLOBAL: _Machine._stack_global,
    pickle.REDUCE: _Machine._call,
    pickle.NEWOBJ: _Machine._call,
    pickle.NEWOBJ_EX: lambda m: m._call(with_keywords=True),
    pickle.BUILD: _Machine._build,
    pickle.BINPERSID: _Machine._persistent,
}
