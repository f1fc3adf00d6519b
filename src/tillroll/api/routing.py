"""Which route an address means: a tree of its parts, told apart while still percent-encoded.

An id may hold any character, a slash too, so parts are split before they are decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from tillroll.ledger.errors import NotFound
from tillroll.wire.problems import MethodNotAllowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tillroll.api.calls import Route


class Node:
    """One part of an address: what may follow it, and what it answers to."""

    __slots__ = ("literal", "methods", "parameter")

    def __init__(self) -> None:
        """Begin with nothing below."""
        self.literal: dict[str, Node] = {}
        self.parameter: Node | None = None
        self.methods: dict[str, Route] = {}

    def below(self, part: str) -> Node:
        """Return the node of a part of a route's path, made if it is new."""
        if part.startswith("{"):
            if self.parameter is None:
                self.parameter = Node()
            return self.parameter
        return self.literal.setdefault(part, Node())

    def find(self, parts: list[str], at: int = 0) -> Iterator[Node]:
        """Yield every node that these parts lead to, literal parts first."""
        if at == len(parts):
            if self.methods:
                yield self
            return
        literal = self.literal.get(parts[at])
        if literal is not None:
            yield from literal.find(parts, at + 1)
        if self.parameter is not None and parts[at]:
            yield from self.parameter.find(parts, at + 1)


class Routes:
    """The routes of a service, found by method and address."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Know these routes."""
        self._root = Node()
        for route in routes:
            node = self._root
            for part in route.parts:
                node = node.below(part)
            assert route.method not in node.methods, f"two routes are {route.method} {route.path}"
            node.methods[route.method] = route

    def find(self, method: str, raw_path: bytes) -> tuple[Route, list[str]]:
        """Return the route of an address and the values of its parameters, decoded.

        Raises:
            NotFound: There is no such address, or it is not well encoded.
            MethodNotAllowed: It does not have this method.
        """
        parts = raw_path.decode("latin-1").split("/")[1:]
        allowed: set[str] = set()
        for node in self._root.find(parts):
            route = node.methods.get(method)
            if route is not None:
                return route, [_decoded(parts[place]) for place in route.places]
            allowed |= node.methods.keys()
        if allowed:
            names = ", ".join(sorted(allowed))
            raise MethodNotAllowed(f"this address has {names}, not {method}", names)
        raise NotFound("there is nothing at this address")


def _decoded(part: str) -> str:
    if "%" not in part and part.isascii():
        return part
    try:
        return unquote(part.encode("latin-1"), errors="strict")
    except UnicodeDecodeError:
        raise NotFound("the address is not well encoded") from None
