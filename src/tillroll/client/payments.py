"""What a client asks about payments: checkouts, what was paid, top-ups, overage.

A ledger in one's own process has none of these: they are the service's, which knows the payment
provider. Answers are what the API shows, as plain values: units as decimal strings, money in the
currency's smallest unit, times as ISO 8601.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tillroll.client.calls import change_call, keyed_call, look_call, named
from tillroll.client.conversation import Rules, Steps, ask
from tillroll.ledger.types import WALLET_DEFAULT
from tillroll.ledger.units import parse_decimal

if TYPE_CHECKING:
    from tillroll.ledger.units import Units
    from tillroll.ledger.verbs import Span

Shown = dict[str, Any]


class Payments:
    """The methods of a client that are about payments, as conversations."""

    rules: Rules

    # ------------------------------------------------------------ payments

    def checkout(self, account: str, product: str, *, request_id: str | None = None) -> Steps[str]:
        """Return where an account pays for a product: the same page as long as it is open.

        Args:
            account: Who pays.
            product: A pack, pass or plan of the catalog.
            request_id: Repeat it to retry; the first answer is returned.

        Raises:
            InvalidInput: There is no such product, or the account is closed; nothing was written.
            IdempotencyConflict: The id was used for another product; nothing was written.
            NotFound: Payments are not set up for this project and mode; nothing was written.
            ProviderRefused: Nothing was written.
            ProviderUnavailable, OutcomeUnknown: Ask again with the same id.
        """
        path = f"/v1/accounts/{named(account, 'account')}/checkouts"
        call = keyed_call("checkout", path, {"product": product}, request_id)
        return (yield from ask(self.rules, call, lambda shown: str(shown["checkout_url"])))

    def payments(self, account: str, *, after: str = "", limit: int = 1_000) -> Steps[Shown]:
        """Return an account's `payments`, as the provider told of them, and its `subscriptions`.

        Args:
            account: Whose.
            after: The `next` of the page before.
            limit: At most so many payments.

        Raises:
            NotFound: There is no such account.
            InvalidInput: The limit is out of bounds, or the place is none.
        """
        path = f"/v1/accounts/{named(account, 'account')}/payments"
        call = look_call("payments", path, after=after or None, limit=limit)
        return (yield from ask(self.rules, call, dict))

    def unplaced_payments(
        self,
        *,
        after: str = "",
        after_subscription: str = "",
        after_event: str = "",
        limit: int = 1_000,
    ) -> Steps[Shown]:
        """Return money that is nobody's or could not be followed, and events that cannot be.

        `payments` and `subscriptions` are also those of accounts, such as closed ones.

        Args:
            after: The `next` of the page before.
            after_subscription: The `next_subscription` of the page before.
            after_event: The `next_event` of the page before.
            limit: At most so many of each.

        Raises:
            InvalidInput: The limit is out of bounds, or a place is none.
        """
        call = look_call(
            "unplaced_payments",
            "/v1/payments",
            after=after or None,
            after_subscription=after_subscription or None,
            after_event=after_event or None,
            limit=limit,
        )
        return (yield from ask(self.rules, call, dict))

    # ------------------------------------------------------------ top-ups

    def top_up(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Return what tops an account up, and how it stands.

        Raises:
            NotFound: Nothing does.
        """
        return (yield from ask(self.rules, look_call("top_up", _top_up(account, wallet)), dict))

    def set_top_up(
        self,
        account: str,
        *,
        threshold: Units,
        target: Units,
        wallet: str = WALLET_DEFAULT,
        product: str | None = None,
        unit_price: Units | None = None,
        currency: str | None = None,
        daily_cap: Units | None = None,
        monthly_cap: Units | None = None,
        cool_down: Span | None = None,
    ) -> Steps[Shown]:
        """Have an account topped up from now on; what is pending or was spent stays.

        Args:
            account: The balance owner; it must have paid before, so that a card is on file.
            threshold: At or below so many spendable units it is topped up.
            target: Up to so many.
            wallet: The kind of credits.
            product: A pack of the catalog that brings them; bought as often as it takes.
            unit_price: What one unit costs, such as "0.01", where there is no pack for it.
            currency: Of the unit price; a pack has its own.
            daily_cap: The most that is charged on one day, such as "50" (of the currency).
            monthly_cap: The most that is charged in one month.
            cool_down: How long after a top-up the next one may be; ten minutes if left out.

        Raises:
            InvalidInput: It makes no sense, or the catalog has no such pack; nothing was written.
            NotFound: There is no such account, or no payments; nothing was written.
            AccountClosed: Nothing was written.
        """
        amounts = {
            "threshold": threshold,
            "target": target,
            "unit_price": unit_price,
            "daily_cap": daily_cap,
            "monthly_cap": monthly_cap,
        }
        given: dict[str, object] = {
            name: None if amount is None else parse_decimal(amount, name)
            for name, amount in amounts.items()
        }
        given |= {"product": product, "currency": currency, "cool_down": cool_down}
        path = _top_up(account, wallet)
        return (yield from ask(self.rules, change_call("set_top_up", "PUT", path, given), dict))

    def pause_top_up(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Charge nothing more until it is resumed; an attempt that is pending is waited for.

        Raises:
            NotFound: Nothing tops it up; nothing was written.
        """
        path = f"{_top_up(account, wallet)}/pause"
        return (yield from ask(self.rules, change_call("pause_top_up", "POST", path, {}), dict))

    def resume_top_up(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Look at the balance again, whatever it was paused or waited for.

        Raises:
            NotFound: Nothing tops it up; nothing was written.
        """
        path = f"{_top_up(account, wallet)}/resume"
        return (yield from ask(self.rules, change_call("resume_top_up", "POST", path, {}), dict))

    # ------------------------------------------------------------ overage

    def overage(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Return what is reported of an account's usage beyond its units, and how far that is.

        Raises:
            NotFound: Nothing is.
        """
        return (yield from ask(self.rules, look_call("overage", _overage(account, wallet)), dict))

    def set_overage(
        self, account: str, meter: str, *, wallet: str = WALLET_DEFAULT
    ) -> Steps[Shown]:
        """Report what an account uses beyond its units from now on; again, to another meter.

        Args:
            account: The balance owner, who may owe: see `set_overdraft`.
            meter: The event name of the provider's meter.
            wallet: The kind of credits.

        Raises:
            InvalidInput: A batch is under way; ask again when it has arrived.
            NotFound: There is no such account, or no payments; nothing was written.
            AccountClosed: Nothing was written.
        """
        call = change_call("set_overage", "PUT", _overage(account, wallet), {"meter": meter})
        return (yield from ask(self.rules, call, dict))

    def stop_overage(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Report nothing more; set again, it goes on from where it stopped.

        Raises:
            NotFound: Nothing is reported; nothing was written.
        """
        path = f"{_overage(account, wallet)}/stop"
        return (yield from ask(self.rules, change_call("stop_overage", "POST", path, {}), dict))

    def resolve_overage(
        self, account: str, *, arrived: bool, wallet: str = WALLET_DEFAULT
    ) -> Steps[Shown]:
        """Say whether a batch in doubt arrived, as the provider's own pages show; then go on.

        Raises:
            InvalidInput: Nothing is in doubt, or not any more; nothing was written.
            NotFound: Nothing is reported; nothing was written.
        """
        path = f"{_overage(account, wallet)}/resolve"
        call = change_call("resolve_overage", "POST", path, {"arrived": arrived})
        return (yield from ask(self.rules, call, dict))


def _top_up(account: str, wallet: str) -> str:
    return f"/v1/accounts/{named(account, 'account')}/top-ups/{named(wallet, 'wallet')}"


def _overage(account: str, wallet: str) -> str:
    return f"/v1/accounts/{named(account, 'account')}/overage/{named(wallet, 'wallet')}"


__all__ = ["Payments"]
