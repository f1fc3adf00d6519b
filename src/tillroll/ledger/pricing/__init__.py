"""The price book: from an operation and its meters to units, exactly and explainably.

The rules as written are in `rules` (`Price`), their immutable versions and the book that holds
them in `versions`; `compiled` makes a version ready, and `request` prices a request with it
(`price_request`). `explaining` writes out how an amount came about, `unknown` why there is none,
`checks` what is wrong with a rule. Everything is a pure function of its arguments; files, TOML and
proposals from vendors live in `tillroll.catalog`.

How the arithmetic stays exact. A price is compiled once per version: all its rates are brought
to one common denominator, so that pricing a request is a sum of integer products and a single
integer division at the end, where the rounding rule decides. Nothing is rounded on the way, a
rate "per 3" included. `Decimal` appears at the border only, never `float`.

Read next: docs/concepts/prices.md for the ideas, docs/reference/price-book.md for each field.
"""

from __future__ import annotations

from tillroll.ledger.pricing.answers import Priced, Unpriced
from tillroll.ledger.pricing.checks import clashes_among, problems_of
from tillroll.ledger.pricing.explaining import explain_hold, explain_price
from tillroll.ledger.pricing.request import check_meters, price_hold, price_request
from tillroll.ledger.pricing.rules import (
    NAME_RULE,
    ROUNDINGS,
    WALLET_RULE,
    Meters,
    Price,
    Rate,
    Rounding,
    Tier,
    TierMode,
    is_glob,
    is_name,
    is_wallet,
    plain,
    rule_name,
    utc_text,
)
from tillroll.ledger.pricing.versions import (
    PriceBook,
    PriceVersion,
    content_digest,
    decode_version,
    encode_version,
    new_version,
)

__all__ = [
    "NAME_RULE",
    "ROUNDINGS",
    "WALLET_RULE",
    "Meters",
    "Price",
    "PriceBook",
    "PriceVersion",
    "Priced",
    "Rate",
    "Rounding",
    "Tier",
    "TierMode",
    "Unpriced",
    "check_meters",
    "clashes_among",
    "content_digest",
    "decode_version",
    "encode_version",
    "explain_hold",
    "explain_price",
    "is_glob",
    "is_name",
    "is_wallet",
    "new_version",
    "plain",
    "price_hold",
    "price_request",
    "problems_of",
    "rule_name",
    "utc_text",
]
