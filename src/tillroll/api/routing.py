"""Which route an address means: a tree of its parts, told apart while still percent-encoded.

An id may hold any character, a slash too, so parts are split before they are decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from tillroll.ledger.errors import NotFound
from tillroll.ledger.values import ID_MAX
from tillroll.wire.problems import MethodNotAllowed, NoSuchAddress

if TYPE_CHECKING:
    from collections.abc import Iterable

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
            assert not (node.parameter and node.literal), "a word and a value in one place"

    def find(self, method: str, raw_path: bytes) -> tuple[Route, list[str]]:
        """Return the route of an address and its parameters, still encoded.

        Raises:
            NoSuchAddress: There is none.
            MethodNotAllowed: It does not have this method.
        """
        parts = raw_path.decode("latin-1").split("/")
        node: Node | None = self._root
        for part in parts[1:]:
            assert node is not None
            node = node.literal.get(part) or (node.parameter if part else None)
            if node is None:
                raise NoSuchAddress("there is nothing at this address")
        assert node is not None
        if not node.methods:
            raise NoSuchAddress("there is nothing at this address")
        found = node.methods.get(method)
        if found is None:
            allowed = ", ".join(sorted(node.methods))
            raise MethodNotAllowed(f"this address has {allowed}, not {method}", allowed)
        route, places = found
        return route, list(map(parts.__getitem__, places))


def decoded(part: str) -> str:
    """Return the value of a parameter.

    Raises:
        NotFound: It is not well encoded, or no id can be so.
    """
    if "%" in part or not part.isascii():
        try:
            part = unquote(part.encode("latin-1"), errors="strict")
        except UnicodeDecodeError:
            raise NotFound("the address is not well encoded") from None
        if "\0" in part:
            raise NotFound("no id has the character U+0000")
    if len(part) > ID_MAX:
        raise NotFound(f"an id has {ID_MAX} characters at the most")
    return part
