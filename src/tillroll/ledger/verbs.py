"""The verbs: callers' values in, checked requests out.

Each verb's signature, documentation and validation stand here once. `Ledger` and `AsyncLedger`
(and whatever else carries requests) differ only in how they wait for the answer. What a verb
raises from here is `InvalidInput`: nothing was queued, nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import msgspec

from tillroll.ledger import calendar, chain, values
from tillroll.ledger import commands as c
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import (
    RESERVED,
    WALLET_DEFAULT,
    AlertOn,
    AlertTerms,
    BudgetTerms,
    Category,
    EntitlementKind,
    Every,
    Feature,
    Meters,
    Period,
    PlanGrant,
    RecurringTerms,
    Standing,
    Watched,
)
from tillroll.ledger.units import (
    Units,
    parse_decimal,
    parse_limit,
    parse_signed,
    parse_units,
)
from tillroll.ledger.values import Expiry, Meter, Span, When

if TYPE_CHECKING:
    from collections.abc import Callable

_ITEM = "such as {'account': 'acme', 'units': 5}"


class Who(TypedDict, total=False):
    """Who acts, and what is kept with it.

    Attributes:
        actor: Who acts, such as an operator or an API key; shown by explain.
        metadata: Any JSON object up to 4 KiB, kept beside the entry and erasable.
        retry_refused: Decide anew a request that was refused before, such as after a top-up.
    """

    actor: str | None
    metadata: Mapping[str, object] | None
    retry_refused: bool


class How(Who, total=False):
    """What every verb takes beside its own arguments: `Who`, and why.

    Attributes:
        reason: Why, in your words; at most 1,000 characters.
    """

    reason: str | None


_HOW = frozenset(How.__optional_keys__)


class _Common(TypedDict, total=False):
    """What every command carries, checked."""

    reason: str | None
    tags: dict[str, str] | None
    metadata_digest: bytes | None


class _Work(TypedDict, total=False):
    """What a consume and a hold share, checked; what was not given is left out."""

    operation: str | None
    units: int | None
    model: str | None
    meters: Meters | None
    attributes: dict[str, str] | None
    wallet: str | None
    quote: c.QuoteClaims | None
    effective_at: int | None
    feature: str | None


class Verbs:
    """Builds requests for one project at one scale.

    Args:
        project: The isolation boundary; part of every account's key.
        scale: Decimals of the units.
        new_id: Makes a request_id where the caller gives none. Time-ordered ids keep the index
            of ids small and fast.
        read_quote: Checks a quote's signature and returns what it promises.
        ours: Take ids that are marked as our own, which no caller can have used.
    """

    def __init__(
        self,
        project: str,
        scale: int,
        new_id: Callable[[], str],
        read_quote: Callable[[str], c.QuoteClaims],
        *,
        ours: bool = False,
    ) -> None:
        """Build requests for one project."""
        self._ours = ours
        self.project = project
        self.scale = scale
        self._new_id = new_id
        self._read_quote = read_quote

    # ------------------------------------------------------------ units in

    def grant(
        self,
        account: str,
        units: Units,
        *,
        request_id: str | None = None,
        wallet: str = WALLET_DEFAULT,
        category: Category = "paid",
        priority: int = 0,
        effective_at: When | None = None,
        expires_at: Expiry | None = None,
        expires_in: Span | None = None,
        applies_to: Iterable[str] = (),
        cost_basis: Units | None = None,
        source: str | None = None,
        tags: Mapping[str, str] | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Put units into an account. The grant is known by its `request_id` from then on.

        Args:
            account: Your own id for the balance owner, 1-255 characters.
            units: An exact amount greater than zero: `int`, `Decimal` or "12.5".
            request_id: Repeat it to retry; the first answer is returned.
            wallet: The kind of credits.
            category: "paid", "promo", "plan" or "adjustment"; promo is burnt before the rest.
            priority: Lower is burnt first.
            effective_at: When it may first be used; now if left out. ISO text or aware datetime.
            expires_at: When it ends: an instant, or a date (`date` or "2026-07-31"), which is
                good through the whole of that day in the account's time zone.
            expires_in: The same as a span from its beginning, such as "90d".
            applies_to: Operations it may pay for, such as "image.generate" or "image.*"; empty
                for all.
            cost_basis: What one unit was sold for, in your money; kept for your books.
            source: Where it came from, such as an invoice.
            tags: Names and values to group by.
            **how: See `How`.

        Returns:
            The receipt of the grant.

        Raises:
            AccountClosed: Refused; nothing moved.
            InvalidInput, IdempotencyConflict, StoreUnavailable: Nothing written.
            OutcomeUnknown: Ask again with the same request_id.
        """
        at, on = self._expiry(expires_at)
        if (at is not None or on is not None) and expires_in is not None:
            raise InvalidInput("give expires_at or expires_in, not both")
        return self._request(
            account,
            c.Grant(
                units=parse_units(units, self.scale),
                wallet=values.wallet(wallet, "wallet"),
                category=values.one_of(category, Category, "category"),
                priority=values.priority(priority),
                effective_at=values.instant(effective_at, "effective_at"),
                expires_at=at,
                expires_on=on,
                expires_in=values.span(expires_in, "expires_in"),
                applies_to=values.patterns(applies_to),
                cost_basis=None
                if cost_basis is None
                else str(parse_decimal(cost_basis, "cost_basis")),
                source=values.optional(source, "source"),
                **self._common(tags, how),
            ),
            request_id,
            how,
        )

    def void(
        self,
        account: str,
        grant_id: str,
        *,
        units: Units | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Cancel what is left of a grant. What a hold took of it stays usable for that hold.

        Args:
            account: The balance owner.
            grant_id: The `request_id` of the grant.
            units: Take only so many of those left, and leave the grant in force; what was asked
                for and is not there is the entry's `shortfall`. All that is left if left out, and
                then the grant is over: what comes back to it later is taken out as well.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            AccountClosed, GrantNotFound: Refused; nothing moved.
        """
        command = c.Void(
            grant_id=values.target(grant_id, "grant_id"),
            units=None if units is None else parse_units(units, self.scale),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def adjust(
        self,
        account: str,
        units: Units,
        *,
        reason: str,
        request_id: str | None = None,
        wallet: str = WALLET_DEFAULT,
        tags: Mapping[str, str] | None = None,
        **who: Unpack[Who],
    ) -> c.Request:
        """Correct a balance by hand, up or down, with a reason.

        Args:
            account: The balance owner.
            units: Not zero; negative takes units out, never below zero.
            reason: Why; required.
            request_id: Repeat it to retry; the first answer is returned.
            wallet: The kind of credits.
            tags: Names and values to group by.
            **who: See `Who`.

        Raises:
            AccountClosed, InsufficientUnits: Refused; nothing moved.
        """
        amount = parse_signed(units, self.scale)
        if amount == 0:
            raise InvalidInput("units must not be zero")
        if not values.text(reason, "reason", values.REASON_MAX).strip():
            raise InvalidInput("an adjustment needs a reason")
        how: How = {**who, "reason": reason}
        return self._request(
            account,
            c.Adjust(
                units=amount, wallet=values.wallet(wallet, "wallet"), **self._common(tags, how)
            ),
            request_id,
            how,
        )

    def buy(
        self,
        account: str,
        product: str,
        *,
        quantity: int = 1,
        version: int | None = None,
        cost_basis: Units | None = None,
        source: str | None = None,
        request_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Give what a pack or a pass of the catalog says: a grant of units, or time.

        A pack becomes a grant that is known by its `request_id` and names its product. A pass
        becomes an entitlement called like it; bought again while it runs, it ends later.

        Args:
            account: The balance owner.
            product: The name of the pack or pass.
            quantity: How many of it.
            version: The version of the catalog that it was sold by; the one in force if left out.
            cost_basis: What one unit was sold for; worked out from the pack's price if left out.
            source: Where it came from, such as a payment.
            request_id: Repeat it to retry; the first answer is returned.
            tags: Names and values to group by.
            **how: See `How`.

        Raises:
            AccountClosed: Refused; nothing moved.
            InvalidInput: The catalog has no such pack or pass; nothing written or remembered.
        """
        command = c.Buy(
            product=values.product(product, "product"),
            quantity=values.integer(quantity, "quantity", 1, values.QUANTITY_MAX),
            version=None if version is None else values.integer(version, "version", 1, 2**31),
            cost_basis=None if cost_basis is None else str(parse_decimal(cost_basis, "cost_basis")),
            source=values.optional(source, "source"),
            **self._common(tags, how),
        )
        return self._request(account, command, request_id, how)

    def redeem(
        self,
        account: str,
        coupon: str,
        *,
        request_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Give what a coupon of the catalog says, as a promo grant.

        Args:
            account: The balance owner.
            coupon: The name of the coupon.
            request_id: Repeat it to retry; the first answer is returned.
            tags: Names and values to group by.
            **how: See `How`.

        Raises:
            AccountClosed, CouponUsed: Refused; nothing moved.
            InvalidInput: The catalog has no such coupon; nothing written or remembered.
        """
        command = c.Redeem(coupon=values.product(coupon, "coupon"), **self._common(tags, how))
        return self._request(account, command, request_id, how)

    # ------------------------------------------------------------ what may be used

    def subscribe(
        self,
        account: str,
        plan: str,
        *,
        name: str = "subscription",
        when: c.Change = "now",
        version: int | None = None,
        status: Standing | None = None,
        started_at: When | None = None,
        trial: bool = True,
        trial_ends_at: When | None = None,
        ends_at: When | Literal["never"] | None = None,
        paid_until: When | Literal["never"] | None = None,
        source: str | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Put an account on a plan of the catalog, or move it to another plan or version.

        The terms of the plan are copied: later versions of the catalog change nothing of what runs
        until the account is moved. Another plan begins a period of its own now, whose grants take
        the place of what is left of those of the same name; the same plan again keeps its period
        and changes its grants from the next renewal on. Other grants are never touched.

        Args:
            account: The balance owner.
            plan: The name of the plan.
            name: What the subscription is called, where an account has several.
            when: "now", or "period_end" to move when the period at hand ends.
            version: The version of the catalog; the one in force if left out.
            status: "trialing", "active", "past_due" (may be used, is not renewed) or "paused"
                (neither). If left out, "trialing" where the plan has a trial, and as it was where
                it is moved.
            started_at: When it began, and its periods with it; now if left out.
            trial: False begins without the plan's trial.
            trial_ends_at: When the trial ends; after the plan's if left out. Then it is active.
            ends_at: When it ends; "never" takes an end back.
            paid_until: No renewal from this instant on, until it is moved; "never" for always.
            source: Where it came from, such as a subscription of a payment provider.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            AccountClosed: Refused; nothing moved.
            InvalidInput: The catalog has no such plan; nothing written or remembered.
        """
        command = c.Subscribe(
            plan=values.product(plan, "plan"),
            name=values.text(name, "name", values.ENTITLEMENT_NAME_MAX),
            when=values.one_of(when, c.Change, "when"),
            version=None if version is None else values.integer(version, "version", 1, 2**31),
            started_at=values.instant(started_at, "started_at"),
            trial=values.flag(trial, "trial"),
            source=values.optional(source, "source"),
            **values.standing(status, trial_ends_at, ends_at, paid_until),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def entitle(
        self,
        account: str,
        name: str,
        *,
        kind: EntitlementKind = "feature",
        features: Mapping[str, Feature] | None = None,
        grants: Iterable[Mapping[str, Any]] = (),
        every: Every = "month",
        count: int = 1,
        status: Standing | None = None,
        product: str | None = None,
        started_at: When | None = None,
        trial_ends_at: When | None = None,
        ends_at: When | Literal["never"] | None = None,
        lasts: Span | None = None,
        paid_until: When | Literal["never"] | None = None,
        source: str | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Give an entitlement on terms of your own, without a catalog; given again, change it.

        Args:
            account: The balance owner.
            name: What it is called.
            kind: "feature", "subscription" or "time_pass".
            features: Name to value: True, a limit, or a setting. Its own name, switched on, where
                neither features nor grants are given. Where the catalog declares features, each is
                one of them and has its kind of value.
            grants: Units that come again and again, each a mapping with `units` and, as for
                `set_recurring`, every, count, rollover_min, rollover_max, wallet, priority,
                applies_to; `name` tells several of one wallet apart. One that says neither every
                nor count comes with the entitlement's own period.
            every: Its period: "day", "week", "month" or "year".
            count: Every how many of them.
            status: "trialing", "active", "past_due" (may be used, is not renewed) or "paused"
                (neither).
            product: What you sold it as.
            started_at: When it began, and its periods with it; now if left out.
            trial_ends_at: When the trial ends; then it is active.
            ends_at: When it ends; "never" takes an end back.
            lasts: How long it lasts from now, or on from its end where it runs already, as "30d".
            paid_until: No renewal from this instant on, until it is moved; "never" for always.
            source: Where it came from.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            AccountClosed: Refused; nothing moved.
            InvalidInput: The catalog has no such feature, or it takes another kind of value;
                nothing written or remembered.
        """
        if ends_at is not None and lasts is not None:
            raise InvalidInput("give ends_at or lasts, not both")
        name = values.text(name, "name", values.ENTITLEMENT_NAME_MAX)
        every = values.one_of(every, Every, "every")
        count = values.integer(count, "count", 1, 1_000)
        listed = values.items(grants, "grants", values.GRANTS_MAX)
        brought = tuple(self._plan_grant(grant, every, count) for grant in listed)
        if len({grant.name for grant in brought}) < len(brought):
            raise InvalidInput("two grants have the same name; give each its own")
        if trial_ends_at is not None and status is None:
            status = "trialing"
        command = c.Entitle(
            name=name,
            kind=values.one_of(kind, EntitlementKind, "kind"),
            features=values.features(features, {} if brought else {name: True}),
            grants=brought,
            every=every,
            count=count,
            product=values.optional(product, "product"),
            started_at=values.instant(started_at, "started_at"),
            lasts=values.span(lasts, "lasts"),
            source=values.optional(source, "source"),
            **values.standing(status, trial_ends_at, ends_at, paid_until),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def change_entitlement(
        self,
        account: str,
        name: str,
        *,
        status: Standing | None = None,
        trial_ends_at: When | None = None,
        ends_at: When | Literal["never"] | None = None,
        paid_until: When | Literal["never"] | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Change how an entitlement stands or when it ends; what is left out stays.

        Args:
            account: The balance owner.
            name: What it is called, such as "subscription".
            status: "trialing", "active", "past_due" (may be used, is not renewed) or "paused"
                (neither). What was not renewed meanwhile does not come later, but for the period
                at hand.
            trial_ends_at: When the trial ends.
            ends_at: When it ends; "never" takes an end back.
            paid_until: No renewal from this instant on, until it is moved; "never" for always.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            AccountClosed, EntitlementNotFound: Refused; nothing moved.
        """
        standing = values.standing(status, trial_ends_at, ends_at, paid_until)
        if not standing:
            raise InvalidInput("give status, trial_ends_at, ends_at or paid_until")
        command = c.ChangeEntitlement(
            name=values.text(name, "name", values.ENTITLEMENT_NAME_MAX),
            **standing,
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def end_entitlement(
        self,
        account: str,
        name: str,
        *,
        when: c.Change = "now",
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """End an entitlement. What it granted stays until it expires; nothing else is touched.

        Args:
            account: The balance owner.
            name: What it is called, such as "subscription".
            when: "now", or "period_end" to end it with the period at hand.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            AccountClosed, EntitlementNotFound: Refused; nothing moved.
        """
        command = c.EndEntitlement(
            name=values.text(name, "name", values.ENTITLEMENT_NAME_MAX),
            when=values.one_of(when, c.Change, "when"),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def _plan_grant(self, grant: Mapping[str, Any], every: Every, count: int) -> PlanGrant:
        """Check one of an entitlement's grants; Any: a mapping from the caller."""
        if not isinstance(grant, Mapping):
            raise InvalidInput("each of grants must be a mapping such as {'units': 1000}")
        unknown = set(grant) - set(PlanGrant.__struct_fields__)
        if unknown or "units" not in grant:
            known = ", ".join(PlanGrant.__struct_fields__)
            raise InvalidInput(f"a grant has units, and of these what it needs: {known}")
        wallet = values.wallet(grant.get("wallet", WALLET_DEFAULT), "wallet")
        lowest = parse_limit(grant.get("rollover_min", 0), self.scale, "rollover_min")
        highest = parse_limit(grant.get("rollover_max", 0), self.scale, "rollover_max")
        if lowest > highest:
            raise InvalidInput("rollover_min must not exceed rollover_max")
        operations = grant.get("applies_to", ())
        own = (grant.get("every"), grant.get("count"))
        every, count = calendar.period_of(*own, every, count)
        return PlanGrant(
            name=values.product(grant.get("name", wallet), "a grant's name"),
            units=parse_units(grant["units"], self.scale),
            every=values.one_of(every, Every, "every"),
            count=values.integer(count, "count", 1, 1_000),
            rollover_min=lowest,
            rollover_max=highest,
            wallet=wallet,
            priority=values.priority(grant.get("priority", 0)),
            applies_to=values.patterns(operations),
        )

    # ------------------------------------------------------------ units out

    def consume(
        self,
        account: str,
        operation: str | None = None,
        *,
        units: Units | None = None,
        meters: Mapping[str, Meter] | None = None,
        model: str | None = None,
        attributes: Mapping[str, str] | None = None,
        request_id: str | None = None,
        wallet: str | None = None,
        quote: str | None = None,
        effective_at: When | None = None,
        feature: str | None = None,
        tags: Mapping[str, str] | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Take units in one step: checked and taken under one lock, or refused.

        Args:
            account: The balance owner.
            operation: What was done, such as "image.generate". Priced by the price book unless
                `units` are given.
            units: An exact amount greater than zero.
            meters: Raw quantities for the price, such as {"input_tokens": 1200}.
            model: The model, where prices differ by model.
            attributes: What prices may depend on, such as {"size": "1024x1024"}.
            request_id: Your id of this business event. Repeat it to retry; the first answer is
                returned, marked `replayed`.
            wallet: The kind of credits; where the price book prices, it names the wallet.
            quote: A price-locked quote; the charge never exceeds its ceiling.
            effective_at: When the work was done, for late usage: up to 35 days back, unless the
                account is configured otherwise.
            feature: What the account must be entitled to: checked under the same lock, so that
                nothing can come between the check and the charge.
            tags: Names and values that budgets match and usage groups by, such as a member.
            **how: See `How`.

        Returns:
            The receipt of the charge.

        Raises:
            AccountFrozen, AccountClosed, NotEntitled, Unpriced, QuoteExpired, BudgetExceeded,
            InsufficientUnits: Refused; nothing moved.
            InvalidInput, IdempotencyConflict, StoreUnavailable: Nothing written.
            OutcomeUnknown: Ask again with the same request_id.
        """
        common = self._common(tags, how)  # first: a misspelt argument is what to complain about
        work = self._work(
            account, operation, units, meters, model, attributes, wallet, quote, effective_at
        )
        if feature is not None:
            work["feature"] = values.feature(feature)
        return self._request(account, c.Consume(**work, **common), request_id, how)

    def hold(
        self,
        account: str,
        operation: str | None = None,
        *,
        units: Units | None = None,
        floor: Units | None = None,
        meters: Mapping[str, Meter] | None = None,
        model: str | None = None,
        attributes: Mapping[str, str] | None = None,
        expires_in: Span | None = None,
        request_id: str | None = None,
        wallet: str | None = None,
        quote: str | None = None,
        effective_at: When | None = None,
        feature: str | None = None,
        tags: Mapping[str, str] | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Reserve units before the work. The hold is known by its `request_id` from then on.

        Args:
            account: The balance owner.
            operation: What will be done; priced by the price book unless `units` are given.
            units: The most the work can cost.
            floor: Take what is there if it is at least this much; without it, all or nothing.
            meters: The most the work can measure, such as {"output_tokens": 4096}; what the
                price book's `maximum_meters` knows may be left out.
            model: The model, where prices differ by model.
            attributes: What prices may depend on.
            expires_in: How long the hold lives; 15 minutes if left out, 24 hours at the most.
            request_id: Your id of this business event. Repeat it to retry.
            wallet: The kind of credits.
            quote: A price-locked quote; settling never exceeds its ceiling.
            effective_at: When the work began, for late usage.
            feature: What the account must be entitled to; see `consume`.
            tags: Names and values that budgets match and usage groups by.
            **how: See `How`.

        Raises:
            AccountFrozen, AccountClosed, NotEntitled, Unpriced, QuoteExpired, BudgetExceeded,
            InsufficientUnits: Refused; nothing moved.
            InvalidInput, IdempotencyConflict, StoreUnavailable: Nothing written.
            OutcomeUnknown: Ask again with the same request_id.
        """
        common = self._common(tags, how)
        work = self._work(
            account, operation, units, meters, model, attributes, wallet, quote, effective_at
        )
        if feature is not None:
            work["feature"] = values.feature(feature)
        lowest = None if floor is None else parse_limit(floor, self.scale, "floor")
        most = work.get("units")
        if lowest is not None and most is not None and lowest > most:
            raise InvalidInput("floor must not exceed units")
        life = values.span(expires_in, "expires_in")
        command = c.Hold(**work, floor=lowest, expires_in=life, **common)
        return self._request(account, command, request_id, how)

    def extend(
        self,
        account: str,
        hold_id: str,
        *,
        expires_in: Span,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Prolong an open hold; its deadline never moves closer.

        Args:
            account: The balance owner.
            hold_id: The `request_id` of the hold.
            expires_in: How long from now, 24 hours at the most.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            HoldNotFound, HoldFinalized, HoldExpired: Refused; nothing moved.
        """
        life = values.span(expires_in, "expires_in")
        if life is None:
            raise InvalidInput("extend needs expires_in")
        command = c.Extend(
            hold_id=values.target(hold_id, "hold_id"), expires_in=life, **self._common(None, how)
        )
        return self._request(account, command, request_id, how)

    def settle(
        self,
        account: str,
        hold_id: str,
        *,
        units: Units | None = None,
        meters: Mapping[str, Meter] | None = None,
        attributes: Mapping[str, str] | None = None,
        final: bool = True,
        above: c.Above = "available",
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Take from a hold what was really used and give the rest back to the exact grants.

        Args:
            account: The balance owner.
            hold_id: The `request_id` of the hold.
            units: What was used. Left out together with `meters`: all that is held.
            meters: What was measured; priced by the price version the hold was opened on.
            attributes: What prices may depend on; the hold's own if left out.
            final: False takes a part and leaves the hold open.
            above: What to do where more was used than is held: "available" takes what is free
                and records the rest as shortfall, "refuse" refuses, "overdraft" may also draw on
                the overdraft. A late settle, where the account accepts it, follows the same
                policy; "refuse" then also refuses what cannot be paid in full.
            request_id: Repeat it to retry. A settle of a settled hold with the same figures is
                answered like a repeat even under another id.
            **how: See `How`.

        Raises:
            Unpriced, HoldNotFound, HoldFinalized, HoldExpired, SettleExceedsHold,
            InsufficientUnits (a late settle only): Refused; nothing moved.
            InvalidInput, IdempotencyConflict, StoreUnavailable: Nothing written.
            OutcomeUnknown: Ask again with the same request_id.
        """
        if units is not None and meters is not None:
            raise InvalidInput("give units or meters, not both")
        if units is not None and parse_signed(units, self.scale) == 0:
            raise InvalidInput(
                "units must be greater than zero, not 0: release the hold where nothing was used"
            )
        command = c.Settle(
            hold_id=values.target(hold_id, "hold_id"),
            units=None if units is None else parse_units(units, self.scale),
            meters=values.meters(meters),
            attributes=values.labels(attributes, "attributes"),
            final=values.flag(final, "final"),
            above=values.one_of(above, c.Above, "above"),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def release(
        self, account: str, hold_id: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """Give all of a hold back: the work was not done, nothing is charged.

        Args:
            account: The balance owner.
            hold_id: The `request_id` of the hold.
            request_id: Repeat it to retry; releasing a released hold changes nothing either way.
            **how: See `How`.

        Raises:
            HoldNotFound, HoldFinalized, HoldExpired: Refused; nothing moved.
        """
        command = c.Release(hold_id=values.target(hold_id, "hold_id"), **self._common(None, how))
        return self._request(account, command, request_id, how)

    def mark_in_doubt(
        self,
        account: str,
        hold_id: str,
        *,
        deadline_in: Span | None = None,
        at_deadline: Literal["release", "settle"] = "release",
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Say that nobody knows whether the work was done, such as after a time-out.

        The units stay held, neither charged nor free, until `resolve` or the deadline.

        Args:
            account: The balance owner.
            hold_id: The `request_id` of the hold.
            deadline_in: How long doubt may last; 24 hours if left out, 30 days at the most.
            at_deadline: What then: "release" gives back, "settle" charges all that is held.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            HoldNotFound, HoldFinalized, HoldExpired: Refused; nothing moved.
        """
        command = c.InDoubt(
            hold_id=values.target(hold_id, "hold_id"),
            deadline_in=values.span(deadline_in, "deadline_in"),
            at_deadline=values.one_of(at_deadline, Literal["release", "settle"], "at_deadline"),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def resolve(
        self,
        account: str,
        hold_id: str,
        outcome: Literal["done", "not_done"],
        *,
        units: Units | None = None,
        meters: Mapping[str, Meter] | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """End doubt with what a probe or a provider's receipt says.

        Args:
            account: The balance owner.
            hold_id: The `request_id` of the hold.
            outcome: "done" settles with `units` or `meters` (all that is held where neither is
                given), "not_done" releases.
            units: What was used.
            meters: What was measured.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            As `settle` and `release`.
        """
        if outcome == "done":
            return self.settle(
                account, hold_id, units=units, meters=meters, request_id=request_id, **how
            )
        if outcome != "not_done":
            raise InvalidInput("outcome must be 'done' or 'not_done'")
        if units is not None or meters is not None:
            raise InvalidInput("what was not done has neither units nor meters")
        return self.release(account, hold_id, request_id=request_id, **how)

    def refund(
        self,
        account: str,
        charge: str,
        *,
        units: Units | None = None,
        expired: c.ExpiredPolicy = "expire",
        extend_by: Span | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Give back part or all of a charge, to the very grants that paid.

        Args:
            account: The balance owner.
            charge: The `request_id` of the consume, or of the hold that was settled.
            units: How much; all that is left of the charge if left out.
            expired: For what was paid by a grant that is over by now: "expire" lets it expire
                again, "extend" gives a grant of the same terms that lives for `extend_by`,
                "goodwill" gives a promo grant (for ever, or for `extend_by`).
            extend_by: How long the grant given instead lives, such as "30d".
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            AccountClosed, ChargeNotFound, RefundExceedsCharge: Refused; nothing moved.
        """
        if (expired == "extend") != (extend_by is not None) and expired != "goodwill":
            raise InvalidInput("expired='extend' needs extend_by, and 'expire' takes none")
        command = c.Refund(
            charge=values.target(charge, "charge"),
            units=None if units is None else parse_units(units, self.scale),
            expired=values.one_of(expired, c.ExpiredPolicy, "expired"),
            extend_by=values.span(extend_by, "extend_by"),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    # ------------------------------------------------------------ what may happen from now on

    def freeze(
        self, account: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """Allow nothing new to be taken; work in flight may end, grants may be added."""
        return self._status(account, "freeze", request_id, how)

    def unfreeze(
        self, account: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """End a freeze."""
        return self._status(account, "unfreeze", request_id, how)

    def close_account(
        self, account: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """Close the account for good; only work in flight may still end."""
        return self._status(account, "close", request_id, how)

    def set_overdraft(
        self,
        account: str,
        limit: Units,
        *,
        wallet: str = WALLET_DEFAULT,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Allow a wallet to owe up to `limit`; 0 allows nothing new. Grants repay what is owed.

        Args:
            account: The balance owner.
            limit: An exact amount, zero or more.
            wallet: The kind of credits.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.
        """
        command = c.SetOverdraft(
            limit=parse_limit(limit, self.scale, "limit"),
            wallet=values.wallet(wallet, "wallet"),
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    def set_budget(
        self,
        account: str,
        name: str,
        cap: Units,
        *,
        period: Period = "month",
        window: Span | None = None,
        match: Mapping[str, str] | None = None,
        wallet: str = WALLET_DEFAULT,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Cap what may be spent per period at one node of the account.

        Args:
            account: The balance owner.
            name: What the budget is called; setting it again changes it.
            cap: An exact amount, zero or more.
            period: "day", "week", "month" (in the account's time zone), "total" or "rolling".
            window: The length of a rolling window, such as "5h".
            match: The tags it counts, such as {"member": "ann"}; "*" caps each value apart.
                "operation" and "model" are matched like tags, and "image.*" is all operations below
                `image` together. Empty: everything.
            wallet: The kind of credits.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.
        """
        if (period == "rolling") != (window is not None):
            raise InvalidInput("a rolling budget needs a window, and only a rolling one takes it")
        terms = BudgetTerms(
            name=values.text(name, "name"),
            cap=parse_limit(cap, self.scale, "cap"),
            period=values.one_of(period, Period, "period"),
            window=values.span(window, "window") or 0,
            match=values.labels(match, "match") or {},
            wallet=values.wallet(wallet, "wallet"),
        )
        command = c.SetBudget(terms=terms, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def remove_budget(
        self, account: str, name: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """Remove a budget; removing one that is not there changes nothing."""
        terms = BudgetTerms(name=values.text(name, "name"), cap=None)
        command = c.SetBudget(terms=terms, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def set_recurring(
        self,
        account: str,
        name: str,
        units: Units,
        *,
        anchor: When | date,
        every: Every = "month",
        count: int = 1,
        rollover_min: Units = 0,
        rollover_max: Units = 0,
        category: Category = "plan",
        wallet: str = WALLET_DEFAULT,
        priority: int = 0,
        applies_to: Iterable[str] = (),
        ends_at: When | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Grant units again and again; occurrences are counted from the anchor, never drifting.

        A new recurring grant begins with the period at hand. At each renewal what is left of the
        period before is carried over as min(rollover_max, max(left, rollover_min)); the rest
        expires. Only the grant it issued is touched.

        Args:
            account: The balance owner.
            name: What it is called; setting it again changes it from the next renewal on.
            units: What each period brings.
            anchor: The first occurrence, a date or a local date and time in the account's zone.
            every: "day", "week", "month" or "year".
            count: Every how many of them.
            rollover_min: The least that a new period starts with beside its own units.
            rollover_max: The most that is carried over; 0 for none.
            category: As for grants.
            wallet: The kind of credits.
            priority: Lower is burnt first.
            applies_to: As for grants.
            ends_at: No renewal from this instant on.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.
        """
        lowest = parse_limit(rollover_min, self.scale, "rollover_min")
        highest = parse_limit(rollover_max, self.scale, "rollover_max")
        if lowest > highest:
            raise InvalidInput("rollover_min must not exceed rollover_max")
        terms = RecurringTerms(
            name=values.text(name, "name", 128),
            units=parse_units(units, self.scale),
            every=values.one_of(every, Every, "every"),
            count=values.integer(count, "count", 1, 1_000),
            anchor=values.anchor(anchor),
            rollover_min=lowest,
            rollover_max=highest,
            category=values.one_of(category, Category, "category"),
            wallet=values.wallet(wallet, "wallet"),
            priority=values.priority(priority),
            applies_to=values.patterns(applies_to),
            ends_at=values.instant(ends_at, "ends_at"),
        )
        command = c.SetRecurring(terms=terms, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def stop_recurring(
        self, account: str, name: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """Stop a recurring grant; what it gave stays until it expires."""
        terms = RecurringTerms(name=values.text(name, "name", 128), units=0, stopped=True)
        command = c.SetRecurring(terms=terms, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def set_alert(
        self,
        account: str,
        name: str,
        on: AlertOn,
        threshold: Units | None = None,
        *,
        budget: str | None = None,
        wallet: str = WALLET_DEFAULT,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Have it told, once a crossing, when the account comes near an end.

        It is told to the webhook endpoints of the project that want to hear of it. A level that is
        beyond the threshold already is told at once.

        Args:
            account: The balance owner.
            name: What the alert is called; setting it again changes it. One of the project's
                catalog of that name no longer counts for this account.
            on: "balance" (free units fall below), "percent" (below so many percent of what is
                granted and live), "days_left" (below so many days at the pace of the last 7),
                "depleted" (nothing is free), "budget" (so many percent of a cap are spent) or
                "expiring" (a grant expires in so many days).
            threshold: The units, percent or days; none for "depleted".
            budget: For "budget": the only budget that is meant, which must be there; all of the
                account's, now and later, if left out.
            wallet: The kind of credits.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            InvalidInput: The account has no such budget; nothing written or remembered.
        """
        terms = AlertTerms(
            name=self._alert(name),
            on=values.one_of(on, Watched if self._ours else AlertOn, "on"),
            threshold=values.threshold_of(on, threshold, self.scale),
            wallet=values.wallet(wallet, "wallet"),
            budget=values.optional(budget, "budget"),
        )
        if budget is not None and on != "budget":
            raise InvalidInput("only an alert on 'budget' names one")
        command = c.SetAlert(terms=terms, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def remove_alert(
        self, account: str, name: str, *, request_id: str | None = None, **how: Unpack[How]
    ) -> c.Request:
        """Remove an alert of the account; removing one that is not there changes nothing."""
        terms = AlertTerms(name=self._alert(name), removed=True)
        command = c.SetAlert(terms=terms, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def configure(
        self,
        account: str,
        *,
        time_zone: str | None = None,
        late_settlement: bool | None = None,
        late_usage: Span | None = None,
        early_usage: Span | None = None,
        request_id: str | None = None,
        **how: Unpack[How],
    ) -> c.Request:
        """Change the account's settings; what is left out stays.

        Args:
            account: The balance owner.
            time_zone: An IANA name; budgets' days and months, what comes back and date-only
                expiries follow it. What runs keeps its end: see the page on time.
            late_settlement: Accept a settle after the hold's deadline, from what is free then.
            late_usage: How far back `effective_at` of a consume or hold may be; 35 days unless set,
                at most 400.
            early_usage: How far ahead it may be; 5 minutes unless set, at most a day.
            request_id: Repeat it to retry; the first answer is returned.
            **how: See `How`.

        Raises:
            InvalidInput: None is given: there is nothing to write.
        """
        late, early = values.span(late_usage, "late_usage"), values.span(early_usage, "early_usage")
        if time_zone is None and late_settlement is None and late is None and early is None:
            raise InvalidInput(
                "give time_zone, late_settlement, late_usage or early_usage: without any nothing "
                "changes"
            )
        if late is not None and late > values.LATE_USAGE_MAX:
            raise InvalidInput("late_usage may be 400 days at the most")
        if early is not None and early > values.EARLY_USAGE_MAX:
            raise InvalidInput("early_usage may be a day at the most")
        if time_zone is not None:
            calendar.zone(values.text(time_zone, "time_zone"))
        command = c.Configure(
            time_zone=time_zone,
            late_settlement=None
            if late_settlement is None
            else values.flag(late_settlement, "late_settlement"),
            late_usage=late,
            early_usage=early,
            **self._common(None, how),
        )
        return self._request(account, command, request_id, how)

    # ------------------------------------------------------------ shared

    def _status(
        self,
        account: str,
        to: Literal["freeze", "unfreeze", "close"],
        request_id: str | None,
        how: How,
    ) -> c.Request:
        command = c.SetStatus(to=to, **self._common(None, how))
        return self._request(account, command, request_id, how)

    def _work(
        self,
        account: str,
        operation: str | None,
        units: Units | None,
        meters: Mapping[str, Meter] | None,
        model: str | None,
        attributes: Mapping[str, str] | None,
        wallet: str | None,
        quote: str | None,
        effective_at: When | None,
    ) -> _Work:
        """Check what a consume and a hold share."""
        if operation is None and units is None:
            raise InvalidInput("give an operation, for the price book to price, or units")
        if quote is not None and units is not None:
            raise InvalidInput("a quote prices the work; give no units with it")
        if wallet is not None and units is None:
            raise InvalidInput("the price book names the wallet; give a wallet only with units")
        work: _Work = {}
        if quote is not None:
            work["quote"] = self._claims(quote, account, operation, model)
        if operation is not None:
            work["operation"] = values.text(operation, "operation")
        if units is not None:
            work["units"] = parse_units(units, self.scale)
        if meters is not None:
            work["meters"] = values.meters(meters)
        if model is not None:
            work["model"] = values.text(model, "model")
        if attributes:
            work["attributes"] = values.labels(attributes, "attributes")
        if units is not None:
            work["wallet"] = WALLET_DEFAULT if wallet is None else values.wallet(wallet, "wallet")
        if effective_at is not None:
            work["effective_at"] = values.instant(effective_at, "effective_at")
        return work

    def _claims(
        self, quote: str, account: str, operation: str | None, model: str | None
    ) -> c.QuoteClaims:
        """Return what a quote promises, if it is for this work."""
        claims = self._read_quote(quote)
        if claims.account != account or claims.operation != operation:
            raise InvalidInput("the quote is for another account or operation")
        if claims.model != model:
            raise InvalidInput("the quote is for another model")
        return claims

    def _common(self, tags: Mapping[str, str] | None, how: How) -> _Common:
        """Check what every command carries."""
        common: _Common = {}
        if tags:
            common["tags"] = values.labels(tags, "tags")
        if not how:
            return common
        unknown = how.keys() - _HOW
        if unknown:
            raise InvalidInput(
                f"unknown argument {min(unknown)!r}: besides its own a verb takes "
                f"{', '.join(sorted(_HOW))}"
            )
        reason = how.get("reason")
        if reason is not None:
            common["reason"] = values.text(reason, "reason", values.REASON_MAX, lines=True)
        metadata = how.get("metadata")
        if metadata is not None and metadata != {}:
            common["metadata_digest"] = sha256(values.metadata(metadata)).digest()
        return common

    def _alert(self, name: object) -> str:
        text = values.text(name, "name")
        if text.startswith(RESERVED) and not self._ours:
            raise InvalidInput(f"name must not begin with {RESERVED!r}, which marks our own")
        return text

    def _request(
        self, account: str, command: c.Command, request_id: str | None, how: How
    ) -> c.Request:
        is_new = request_id is None
        if request_id is None:
            request_id = self._new_id()
        elif self._ours:
            request_id = values.text(request_id, "request_id")
        else:
            request_id = values.target(request_id, "request_id")
        account = values.text(account, "account")
        metadata = actor = None
        retry_refused = False
        if how:
            given = how.get("metadata")
            metadata = None if given is None or given == {} else values.metadata(given).decode()
            actor = values.optional(how.get("actor"), "actor")
            retry_refused = values.flag(how.get("retry_refused", False), "retry_refused")
        return c.Request(
            project=self.project,
            account_id=c.account_id(self.project, account),
            account=account,
            request_id=request_id,
            command=command,
            fingerprint=sha256(chain.encode(command)).digest(),
            actor=actor,
            metadata=metadata,
            retry_refused=retry_refused,
            is_new=is_new,
        )

    def _expiry(self, expires_at: Expiry | None) -> tuple[int | None, str | None]:
        """Return an expiry as an instant or as a date, whichever was meant."""
        if isinstance(expires_at, str) and len(expires_at) == len("2026-07-31"):
            try:
                expires_at = date.fromisoformat(expires_at)
            except ValueError:
                raise InvalidInput(f"expires_at is not a date: {expires_at!r}") from None
        if isinstance(expires_at, date) and not isinstance(expires_at, datetime):
            return None, expires_at.isoformat()
        return values.instant(expires_at, "expires_at"), None


def question(
    verbs: Verbs,
    account: str,
    operation: str | None = None,
    *,
    feature: str | None = None,
    units: Units | None = None,
    meters: Mapping[str, Meter] | None = None,
    model: str | None = None,
    attributes: Mapping[str, str] | None = None,
    wallet: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> c.Request:
    """Return the consume that a question about access asks of; it is never carried out.

    With neither operation nor units it is none that could be. Any account may be asked about: one
    of a name that none can have has nothing.
    """
    works = operation is not None or units is not None
    if not works and (meters or model or attributes or wallet or tags):
        raise InvalidInput("give an operation or units, which these belong to")
    asked = verbs.consume(
        "anybody",
        operation,
        feature=feature,
        units=units if works else 1,
        meters=meters,
        model=model,
        attributes=attributes,
        wallet=wallet,
        tags=tags,
    )
    command = asked.command
    assert isinstance(command, c.Consume)
    return msgspec.structs.replace(
        asked,
        account=account,
        account_id=c.account_id(verbs.project, account),
        command=command if works else c.Consume(feature=command.feature),
    )


def batch_of(items: object) -> Iterable[object]:
    """Return the items of a batch; each is looked at by itself, with `item_of`.

    Raises:
        InvalidInput: It is no list of anything.
    """
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise InvalidInput(f"items must be a list of mappings, {_ITEM}")
    return items


def item_of(item: object) -> Mapping[str, Any]:
    """Return an item of a batch: the arguments of `consume`, which checks them.

    Raises:
        InvalidInput: It is no mapping.
    """
    if type(item) is not dict and not isinstance(item, Mapping):
        raise InvalidInput(f"an item must be a mapping, {_ITEM}, not {type(item).__name__}")
    return item


def misnamed(problem: TypeError) -> InvalidInput:
    """Return what is wrong with the names of an item's arguments, in the words of a caller."""
    return InvalidInput(str(problem).rpartition("Verbs.")[2])


__all__ = [
    "How",
    "Meter",
    "Span",
    "Verbs",
    "batch_of",
    "item_of",
    "misnamed",
    "question",
]
