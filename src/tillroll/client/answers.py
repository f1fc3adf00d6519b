"""What the service answers, made into what a ledger gives: receipts, balances, errors.

The inverse of `Receipt.to_dict` and its like. Amounts come as decimal texts and become the
integers that a ledger keeps, so that the same receipt class answers for both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import structs

from tillroll.embedded import Outcome, Quote
from tillroll.ledger import chain, errors
from tillroll.ledger.access import Access
from tillroll.ledger.calendar import instant
from tillroll.ledger.errors import Refused, TillrollError
from tillroll.ledger.pricing import Price, PriceBook, PriceVersion
from tillroll.ledger.products import Products
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.types import Entitlement, Entry, PlanGrant, Posting, PricedBy, Terms
from tillroll.ledger.units import parse_signed
from tillroll.queries import Balance, Held, Page, Proven, Verification

# ---------------------------------------------------------------- entries

_HAVE_DEADLINES = frozenset({"hold", "extend", "in_doubt"})


def receipt_of(shown: Mapping[str, Any], scale: int) -> Receipt:
    """Return the receipt that a service shows."""
    return Receipt(
        _entry(shown, scale), scale, str(shown["account"]), replayed=bool(shown["replayed"])
    )


def _entry(shown: Mapping[str, Any], scale: int) -> Entry:
    def units(name: str) -> int:
        return parse_signed(shown[name], scale, name)

    kind, wallet = shown["kind"], sys.intern(str(shown["wallet"]))
    ends = None if shown["expires_at"] is None else instant(shown["expires_at"], "expires_at")
    postings = tuple(
        Posting(p["from"], p["to"], p["line"], parse_signed(p["units"], scale, "units"))
        for p in shown["postings"]
    )
    opens: tuple[Terms, ...] = ()
    product, version = shown.get("product"), shown.get("catalog_version", 0)
    if (ends is not None and kind not in _HAVE_DEADLINES) or product is not None:
        line = postings[-1].line if postings else str(shown["request_id"])
        terms = Terms(id=line, units=units("units"), wallet=wallet, expires_at=ends)
        opens = (structs.replace(terms, product=product, version=version),)
    meters = {
        name: value if type(value) is int else Decimal(value)
        for name, value in shown["meters"].items()
    }
    return Entry(
        seq=int(shown["seq"]),
        kind=kind,
        at=instant(shown["recorded_at"], "recorded_at"),
        effective_at=instant(shown["effective_at"], "effective_at"),
        request_id=shown["request_id"],
        ref=shown["ref"],
        wallet=wallet,
        units=units("units"),
        postings=postings,
        issued=units("issued"),
        available=units("available"),
        held=units("held"),
        used=units("used"),
        expired=units("expired"),
        operation=shown["operation"],
        model=shown["model"],
        meters=meters or None,
        attributes=shown["attributes"] or None,
        tags=shown["tags"] or None,
        price=None if shown["price"] is None else _price(shown["price"]),
        opens=opens,
        deadline=ends if kind in _HAVE_DEADLINES else None,
        final=shown["final"],
        late=shown["late"],
        shortfall=units("shortfall"),
        reason=shown["reason"],
        actor=shown["actor"],
        feature=shown.get("feature"),
        coupon=shown.get("coupon"),
        entitlement=None
        if shown.get("entitlement") is None
        else _entitlement(shown["entitlement"], scale),
    )


def _entitlement(shown: Mapping[str, Any], scale: int) -> Entitlement:
    """Return the entitlement that a receipt shows; of what comes next, no more than its name."""

    def at(name: str) -> int | None:
        return None if shown[name] is None else instant(shown[name], name)

    following = shown["next"]
    grants = tuple(
        PlanGrant(
            **{
                **grant,
                "applies_to": tuple(grant["applies_to"]),
                **{
                    name: parse_signed(grant[name], scale, name)
                    for name in ("units", "rollover_min", "rollover_max")
                },
            }
        )
        for grant in shown["grants"]
    )
    return Entitlement(
        **{
            **shown,
            "grants": grants,
            **{
                name: at(name)
                for name in ("starts_at", "trial_ends_at", "ends_at", "paid_until", "next_at")
            },
            "next": None
            if following is None
            else Entitlement(
                name=shown["name"], product=following["product"], version=following["version"]
            ),
        }
    )


def _price(shown: Mapping[str, Any]) -> PricedBy:
    return PricedBy(version=shown["version"], rule=shown["rule"], exact=Decimal(shown["exact"]))


def decimals_of(shown: Mapping[str, Any]) -> int:
    """Return how many decimals the amounts of an answer show."""
    texts = [str(shown.get(name, "")) for name in ("units", "available", "issued", "used")]
    return max(len(text.partition(".")[2]) for text in texts)


def page_of(shown: Mapping[str, Any], scale: int) -> Page:
    """Return a page of a statement."""
    due = tuple(receipt_of(line, scale) for line in shown.get("due", ()))
    for receipt in due:
        receipt.due = True
    return Page(tuple(receipt_of(line, scale) for line in shown["entries"]), shown["next"], due)


# ---------------------------------------------------------------- what only looks

_NONE = Decimal(0)


def balance_of(shown: Mapping[str, Any]) -> Balance:
    """Return the balance that a service shows."""
    return Balance(
        account=shown["account"],
        wallet=shown["wallet"],
        available=Decimal(shown["available"]),
        held=Decimal(shown["held"]),
        used=Decimal(shown["used"]),
        expired=Decimal(shown["expired"]),
        issued=Decimal(shown["issued"]),
        overdraft_limit=Decimal(shown["overdraft_limit"]),
        spendable=Decimal(shown["spendable"]),
        status=shown["status"],
        as_of=shown["as_of"],
        seq=shown["seq"],
        grants=tuple(shown["grants"]),
        holds=tuple(shown["holds"]),
        budgets=tuple(shown["budgets"]),
    )


def no_balance(account: str, wallet: str, as_of: str | None) -> Balance:
    """Return the balance of an account that has no history."""
    return Balance(
        account=account,
        wallet=wallet,
        available=_NONE,
        held=_NONE,
        used=_NONE,
        expired=_NONE,
        issued=_NONE,
        overdraft_limit=_NONE,
        spendable=_NONE,
        status="open",
        as_of=as_of or datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        seq=0,
    )


def verification_of(shown: Mapping[str, Any]) -> Verification:
    """Return what a check of histories found."""
    return Verification(shown["accounts"], shown["entries"], list(shown["problems"]))


def proven_of(shown: Mapping[str, Any], account: str, scale: int) -> Proven:
    """Return a receipt and what proves it; the entry is read from the proof, whole."""
    proof = shown["proof"]
    body = proof["body"].encode()
    return Proven(
        receipt=Receipt(chain.decode_entry(body), scale, account),
        body=body,
        hash=bytes.fromhex(proof["hash"]),
        previous=bytes.fromhex(proof["previous"]),
    )


def quote_of(shown: Mapping[str, Any]) -> Quote:
    """Return what an operation would cost."""
    fields = {name: shown[name] for name in Quote.__struct_fields__}
    for name in ("units", "exact", "available"):
        fields[name] = Decimal(fields[name])
    return Quote(**{**fields, "arithmetic": tuple(fields["arithmetic"])})


def access_of(shown: Mapping[str, Any]) -> Access:
    """Return whether an account may do something."""
    fields = {name: shown[name] for name in Access.__struct_fields__}
    return Access(**{**fields, "ways_out": tuple(shown["ways_out"]), "by": tuple(shown["by"])})


def holdings_of(shown: Mapping[str, Any]) -> list[Held]:
    """Return how many accounts hold each product."""
    return msgspec.convert(shown["holdings"], list[Held])


def version_of(shown: Mapping[str, Any]) -> PriceVersion:
    """Return one version of the price book."""
    return PriceVersion(
        number=shown["version"],
        digest=shown["digest"],
        prices=msgspec.convert(shown["prices"], tuple[Price, ...], strict=False),
        overrides=msgspec.convert(shown["overrides"], dict[str, tuple[Price, ...]], strict=False),
        author=shown["author"],
        reason=shown["reason"],
        applied_at=instant(shown["applied_at"], "applied_at"),
        products=msgspec.convert(shown.get("products", {}), Products),
    )


def book_of(shown: Mapping[str, Any]) -> PriceBook:
    """Return the whole price book."""
    versions = [version_of(version) for version in shown["versions"]]
    return PriceBook({version.number: version for version in versions}, shown["current"])


# ---------------------------------------------------------------- batches


def outcomes_of(shown: Mapping[str, Any], ids: Sequence[str], scale: int) -> list[Outcome]:
    """Return one outcome for each request id that was sent, in their order."""
    if len(shown["outcomes"]) != len(ids):
        raise ValueError(f"{len(ids)} items have {len(shown['outcomes'])} outcomes")
    return [
        _outcome(item, request_id, scale)
        for item, request_id in zip(shown["outcomes"], ids, strict=True)
    ]


def _outcome(item: Mapping[str, Any], request_id: str, scale: int) -> Outcome:
    if item["receipt"] is not None:
        return Outcome(receipt_of(item["receipt"], scale), None)
    problem = item["problem"]
    return Outcome(None, error_of(int(problem["status"]), problem, request_id))


# ---------------------------------------------------------------- errors

# Codes of the edge that have no class of their own.
_EDGE: dict[str, type[TillrollError]] = {
    "missing_bearer_token": errors.Unauthorized,
    "idempotency_key_missing": errors.InvalidInput,
    "request_timeout": errors.StoreUnavailable,
}


KINDS: dict[str, type[TillrollError]] = {
    **{
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, TillrollError)
    },
    **_EDGE,
}

# A newer service may have codes that this client does not know: the nearest class, by status.
_BY_STATUS: dict[int, type[TillrollError]] = {
    400: errors.InvalidInput,
    401: errors.Unauthorized,
    402: Refused,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.InvalidInput,
    408: errors.StoreUnavailable,
    409: Refused,
    410: Refused,
    413: errors.InvalidInput,
    415: errors.InvalidInput,
    422: errors.InvalidInput,
    429: errors.TooManyRequests,
    431: errors.InvalidInput,
}


def problem_of(body: bytes) -> dict[str, Any]:
    """Return the problem document (RFC 9457) of an answer; nothing where it is none."""
    try:
        problem = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return problem if isinstance(problem, dict) and isinstance(problem.get("code"), str) else {}


def error_of(
    status: int, problem: Mapping[str, Any], request_id: str | None
) -> TillrollError | None:
    """Return what to raise for an answer with this status; None for a success."""
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's own numbers
        return None
    code = str(problem.get("code", ""))
    if not code and status == 404:  # noqa: PLR2004 - HTTP's own number
        return errors.StoreUnavailable(
            "answered with 404 by something that is no tillroll service: is the address right?"
        )
    kind = KINDS.get(code) or _by_status(status, problem)
    message = str(problem.get("detail") or problem.get("title") or _bare(status))
    error = _refused(kind, message, problem) if issubclass(kind, Refused) else kind(message)
    if code and code != kind.code:
        error.code = code
    error.request_id = problem.get("request_id") or request_id
    return error


def _bare(status: int) -> str:
    if 300 <= status < 400:  # noqa: PLR2004 - HTTP's own numbers
        return f"answered with a redirect ({status}): give the client the address itself"
    return f"answered with {status}"


def _by_status(status: int, problem: Mapping[str, Any]) -> type[TillrollError]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 500 <= status < 600:  # noqa: PLR2004 - HTTP's own numbers
        known = problem.get("written") == "nothing"
        return errors.StoreUnavailable if known else errors.OutcomeUnknown
    # A redirect, or what HTTP has no name for: whoever sent it did not carry the request out.
    return errors.StoreUnavailable


def _refused(kind: type[Refused], message: str, problem: Mapping[str, Any]) -> Refused:
    def exact(name: str) -> Decimal | None:
        return None if problem.get(name) is None else Decimal(problem[name])

    return kind(
        message,
        needed=exact("needed"),
        available=exact("available"),
        held=exact("held"),
        tightest=problem.get("tightest"),
        ways_out=problem.get("ways_out") or (),
        details=problem.get("details"),
        account=problem.get("account"),
        seq=problem.get("seq") or 0,
        replayed=bool(problem.get("replayed")),
    )


__all__ = [
    "access_of",
    "balance_of",
    "book_of",
    "decimals_of",
    "error_of",
    "holdings_of",
    "no_balance",
    "outcomes_of",
    "page_of",
    "problem_of",
    "proven_of",
    "quote_of",
    "receipt_of",
    "verification_of",
    "version_of",
]
