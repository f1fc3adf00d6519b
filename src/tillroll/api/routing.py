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


Found = tuple["Route", tuple[int, ...]]  # a route, and which parts are its parameters


class Node:
    """One part of an address: what may follow it, and what it answers to, by method."""

    __slots__ = ("literal", "methods", "parameter")

    def __init__(self) -> None:
        """Begin with nothing below."""
        self.literal: dict[str, Node] = {}
        self.parameter: Node | None = None
        self.methods: dict[str, Found] = {}

    def below(self, part: str) -> Node:
        """Return the node of a part of a route's path, made if it is new."""
        if part.startswith("{"):
            if self.parameter is None:
                self.parameter = Node()
            return self.parameter
        return self.literal.setdefault(part, Node())

    def leads_to(self, parts: list[str], at: int = 1) -> Iterator[Node]:
        """Yield every node that these parts lead to, literal parts first."""
        if at == len(parts):
            yield self
            return
        literal = self.literal.get(parts[at])
        if literal is not None:
            yield from literal.leads_to(parts, at + 1)
        if self.parameter is not None and parts[at]:
            yield from self.parameter.leads_to(parts, at + 1)


class Routes:
    """The routes of a service, found by method and address."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Know these routes."""
        self._root = Node()
        for route in routes:
            node = self._root
            parts = route.path.split("/")
            for part in parts[1:]:
                node = node.below(part)
            assert route.method not in node.methods, f"two routes are {route.method} {route.path}"
            places = tuple(n for n, part in enumerate(parts) if part.startswith("{"))
            node.methods[route.method] = (route, places)

    def find(self, method: str, raw_path: bytes) -> tuple[Route, list[str]]:
        """Return the route of an address and the values of its parameters, decoded.

        Raises:
            NotFound: There is no such address, or it is not well encoded.
            MethodNotAllowed: It does not have this method.
        """
        parts = raw_path.decode("latin-1").split("/")
        node: Node | None = self._root
        for part in parts[1:]:
            assert node is not None
            node = node.literal.get(part) or (node.parameter if part else None)
            if node is None:
                return self._search(method, parts)
        assert node is not None
        found = node.methods.get(method)
        return self._search(method, parts) if found is None else _matched(found, parts)

    def _search(self, method: str, parts: list[str]) -> tuple[Route, list[str]]:
        """Return the route where a part is both a word of ours and a value, such as `preview`."""
        allowed: set[str] = set()
        for node in self._root.leads_to(parts):
            found = node.methods.get(method)
            if found is not None:
                return _matched(found, parts)
            allowed |= node.methods.keys()
        if allowed:
            names = ", ".join(sorted(allowed))
            raise MethodNotAllowed(f"this address has {names}, not {method}", names)
        raise NotFound("there is nothing at this address")


def _matched(found: Found, parts: list[str]) -> tuple[Route, list[str]]:
    route, places = found
    return route, [_decoded(parts[place]) for place in places]


def _decoded(part: str) -> str:
    if "%" not in part and part.isascii():
        return part
    try:
        return unquote(part.encode("latin-1"), errors="strict")
    except UnicodeDecodeError:
        raise NotFound("the address is not well encoded") from None
