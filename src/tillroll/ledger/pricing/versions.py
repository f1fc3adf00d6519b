"""The immutable versions of the price book, their digest, and the book that holds them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing.checks import clashes_among, problems_of
from tillroll.ledger.pricing.compiled import Index
from tillroll.ledger.pricing.rules import NAME_RULE, Price, is_name, plain, rule_name
from tillroll.ledger.products import NOTHING, Products, check_products


class PriceVersion(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True):
    """An immutable state of the price book. Build one with `new_version`.

    Attributes:
        number: Counts from 1 within a project; pinned on every charge.
        digest: SHA-256 (hex) of the rules and overrides; two versions with the same rules agree.
        prices: The rules, in the order of the file.
        overrides: Account to the rules that are tried first for it.
        author: Who applied it.
        reason: Why, in the author's words.
        applied_at: When, in microseconds UTC.
        products: What is sold beside: packs, plans, passes, features, coupons, alerts.
    """

    number: int
    digest: str
    prices: tuple[Price, ...]
    overrides: Mapping[str, tuple[Price, ...]] = {}
    author: str = ""
    reason: str = ""
    applied_at: int = 0
    products: Products = NOTHING

    @functools.cached_property
    def index(self) -> Index:
        """The rules made ready."""
        # Derived from the fields alone; `dict=True` above gives it a place to stay.
        return Index(self.prices, self.overrides)


class PriceBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All known versions, and the number of the one in force (0: none yet)."""

    versions: Mapping[int, PriceVersion] = {}
    current: int = 0

    @property
    def products(self) -> Products:
        """What the version in force sells; nothing where there is none yet."""
        version = self.versions.get(self.current)
        return NOTHING if version is None else version.products

    def version(self, number: int) -> PriceVersion:
        """Return the version with this number.

        Raises:
            InvalidInput: there is no such version; nothing written.
        """
        try:
            return self.versions[number]
        except KeyError:
            message = f"price version {number} is not known"
            raise InvalidInput(message) from None

    def adding(self, version: PriceVersion) -> PriceBook:
        """Return a book that also holds `version` and has it in force.

        Raises:
            InvalidInput: another version has this number; versions never change.
        """
        known = self.versions.get(version.number)
        if known is not None and known != version:
            message = f"price version {version.number} exists already and versions never change"
            raise InvalidInput(message)
        return PriceBook({**self.versions, version.number: version}, version.number)


def new_version(
    number: int,
    prices: Sequence[Price],
    *,
    overrides: Mapping[str, Sequence[Price]] | None = None,
    products: Products = NOTHING,
    author: str = "",
    reason: str = "",
    applied_at: int = 0,
) -> PriceVersion:
    """Check the rules and products and seal them as a version with its digest.

    Raises:
        InvalidInput: a rule makes no sense, or two rules claim the same requests. Nothing written.
    """
    if number < 1:
        message = f"price versions count from 1, not {number}"
        raise InvalidInput(message)
    own = {ref: tuple(rules) for ref, rules in (overrides or {}).items()}
    for account in own:
        if not is_name(account):
            message = f"override: an account has {NAME_RULE}, not {account!r}"
            raise InvalidInput(message)
    for ref, rules in ((None, tuple(prices)), *own.items()):
        for price in rules:
            for problem in problems_of(price):
                message = f"price {rule_name(price, ref)}: {problem}"
                raise InvalidInput(message)
        for _, later, problem in clashes_among(rules):
            message = f"price {rule_name(rules[later], ref)}: {problem}"
            raise InvalidInput(message)
    check_products(products)
    digest = content_digest(prices, own, products)
    return PriceVersion(number, digest, tuple(prices), own, author, reason, applied_at, products)


def content_digest(
    prices: Sequence[Price],
    overrides: Mapping[str, Sequence[Price]],
    products: Products = NOTHING,
) -> str:
    """Return SHA-256 (hex) of the rules, overrides and products in canonical form.

    Defaults are left out, keys are sorted and decimals are written one way only, so that `2.50`
    and `2.5` agree, and a field added to a later release does not change old digests. The order
    of rules counts, since it decides between rules that fit a request equally well.
    """
    parts: dict[str, object] = {
        "prices": list(prices),
        "overrides": {ref: list(p) for ref, p in overrides.items()},
    }
    if products:
        parts["products"] = products
    content = _canonical(parts)
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def _canonical(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        pairs = ((f, getattr(value, f)) for f in value.__struct_fields__)
        defaults = dict(
            zip(
                reversed(value.__struct_fields__), reversed(value.__struct_defaults__), strict=False
            )
        )
        return {
            name: _canonical(item)
            for name, item in pairs
            if name not in defaults or not _is_default(item, defaults[name])
        }
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return plain(value) if isinstance(value, Decimal) else value


def _is_default(item: object, default: object) -> bool:
    # A mutable default such as {} is kept by msgspec as a factory.
    return not item if callable(getattr(default, "factory", None)) else item == default


def encode_version(version: PriceVersion) -> bytes:
    """Write a version as JSON, for a store; one without products says nothing of them."""
    if version.products:
        return msgspec.json.encode(version)
    fields = msgspec.to_builtins(version)
    del fields["products"]
    return msgspec.json.encode(fields)


def decode_version(data: bytes) -> PriceVersion:
    """Read what `encode_version` wrote and check its digest.

    Raises:
        InvalidInput: not a version, or its content does not have the digest it names.
    """
    try:
        version = msgspec.json.decode(data, type=PriceVersion)
    except msgspec.MsgspecError as error:
        message = f"not a price version: {error}"
        raise InvalidInput(message) from error
    if content_digest(version.prices, version.overrides, version.products) != version.digest:
        message = f"price version {version.number} does not have the content of its digest"
        raise InvalidInput(message)
    return version
