"""Calls: methods of machines that are called from outside, each call carried out once and its result kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar, overload

import attrs

from hsm.codec import ResultCodec, result_codec
from hsm.tree import Node

__all__ = ["Call", "Method", "MethodDeclaration", "method"]

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


@attrs.frozen
class Call(Generic[ResultT]):
    """A method with its arguments: what `Engine.call` carries out, on a machine that it is told.

    It is a function of a node, too, and stands wherever one is wanted: in `update`, in `signal`, in a test.

    Attributes:
        name: of the method.
        fn: the method, which lacks nothing but the node.
        codec: keeps its result.
    """

    name: str
    fn: Callable[[Node], ResultT] = attrs.field(repr=False)
    codec: ResultCodec[ResultT] = attrs.field(repr=False)

    def __call__(self, node: Node) -> ResultT:
        """Run the method on a node."""
        return self.fn(node)


class Method(Generic[ParametersT, ResultT]):
    """A function of a node and some arguments that can be called from outside; `method` makes one.

    Calling it does nothing yet: `pay(amount=3)` is the `Call` that an engine is given.

    Attributes:
        name: is kept with the results.
        codec: of the results.
    """

    def __init__(
        self,
        name: str,
        fn: Callable[Concatenate[Node, ParametersT], ResultT],
        codec: ResultCodec[ResultT],
    ) -> None:
        self.name: str = name
        self.codec: ResultCodec[ResultT] = codec
        self._fn = fn
        self.__doc__ = fn.__doc__

    def __repr__(self) -> str:
        return f"<Method {self.name}>"

    def __call__(self, *args: ParametersT.args, **kwargs: ParametersT.kwargs) -> Call[ResultT]:
        """The call with these arguments."""
        fn = self._fn
        return Call(self.name, lambda node: fn(node, *args, **kwargs), self.codec)


class MethodDeclaration(Generic[ResultT]):
    """What `method(...)` decorates with."""

    def __init__(self, codec: ResultCodec[ResultT], name: str) -> None:
        self._codec = codec
        self._name = name

    def __call__(
        self, fn: Callable[Concatenate[Node, ParametersT], ResultT], /
    ) -> Method[ParametersT, ResultT]:
        """The method that `fn` is."""
        name = self._name or getattr(fn, "__name__", "")
        if not name:
            raise ValueError(f"{fn!r} has no name: give one to `method`")
        return Method(name, fn, self._codec)


@overload
def method(returns: None, *, name: str = "") -> MethodDeclaration[None]: ...
@overload
def method(returns: type[ResultT], *, name: str = "") -> MethodDeclaration[ResultT]: ...
@overload
def method(returns: ResultCodec[ResultT], *, name: str = "") -> MethodDeclaration[ResultT]: ...
def method(
    returns: type[ResultT] | ResultCodec[ResultT] | None, *, name: str = ""
) -> MethodDeclaration[ResultT] | MethodDeclaration[None]:
    """Let a function of a node be called from outside: `@method(Receipt)` above `def pay(node, amount)`.

    The function may run again, as in `Environment.update`, and does to the tree what it likes. What it
    returns is kept with what it did, for whoever does not know whether the call was carried out.

    Args:
        returns: class of the result: a protobuf message, text, bytes, a number, or with the extra
            `attrs-codec` whatever cattrs structures, attrs classes above all; or a codec of one's own; None
            for none.
        name: of the method; that of the function if it is left out. Do not change it: results are kept
            under it.
    """
    if returns is None:
        return MethodDeclaration(result_codec(type(None)), name)
    if isinstance(returns, ResultCodec):
        return MethodDeclaration(returns, name)
    return MethodDeclaration(result_codec(returns), name)
