"""What a client asks of a service beside the ledger's verbs: payments, top-ups, webhooks.

A ledger in one's own process has none of these: they are the service's, which knows the payment
provider. Answers are what the API shows, as plain values: units as decimal strings, money in the
currency's smallest unit, times as ISO 8601.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec.structs import replace

from tillroll.client.calls import look_call, part, send_call
from tillroll.client.conversation import Call, Rules, Steps, converse
from tillroll.embedded.answers import new_id
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import WALLET_DEFAULT
from tillroll.ledger.units import parse_decimal

if TYPE_CHECKING:
    from tillroll.ledger.units import Units
    from tillroll.ledger.verbs import Span

T = TypeVar("T")
Shown = dict[str, Any]
Format = Literal["tillroll", "licenzy"]
DeliveryState = Literal["pending", "delivered", "dead"]


class Services:
    """The methods of a client that are about the service, as conversations."""

    rules: Rules

    def _tell(self, call: Call, read: Callable[[Any], T]) -> Steps[T]:
        return (yield from converse(call, self.rules, self.rules.ends(), read))

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
        call = _keyed("checkout", path, {"product": product}, request_id)
        return (yield from self._tell(call, lambda shown: str(shown["checkout_url"])))

    def payments(self, account: str, *, after: str = "", limit: int = 1_000) -> Steps[Shown]:
        """Return an account's `payments`, as the provider told of them, and its `subscriptions`.

        Args:
            account: Whose.
            after: The `next` of the page before.
            limit: At most so many payments.

        Raises:
            NotFound: There is no such account.
            InvalidInput: The limit is out of bounds.
        """
        path = f"/v1/accounts/{named(account, 'account')}/payments"
        call = look_call("payments", path, after=after or None, limit=limit)
        return (yield from self._tell(call, dict))

    def unplaced_payments(
        self, *, after: str = "", after_event: str = "", limit: int = 1_000
    ) -> Steps[Shown]:
        """Return `payments` that nobody is known to own, and `events` that cannot be followed.

        Args:
            after: The `next` of the page before.
            after_event: The `next_event` of the page before.
            limit: At most so many of each.

        Raises:
            InvalidInput: The limit is out of bounds.
        """
        call = look_call(
            "unplaced_payments",
            "/v1/payments",
            after=after or None,
            after_event=after_event or None,
            limit=limit,
        )
        return (yield from self._tell(call, dict))

    # ------------------------------------------------------------ top-ups

    def top_up(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Return what tops an account up, and how it stands.

        Raises:
            NotFound: Nothing does.
        """
        return (yield from self._tell(look_call("top_up", _top_up(account, wallet)), dict))

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
        return (yield from self._tell(_sent("set_top_up", "PUT", path, given), dict))

    def pause_top_up(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Charge nothing more until it is resumed; an attempt that is pending is waited for.

        Raises:
            NotFound: Nothing tops it up; nothing was written.
        """
        path = f"{_top_up(account, wallet)}/pause"
        return (yield from self._tell(_sent("pause_top_up", "POST", path, {}), dict))

    def resume_top_up(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Look at the balance again, whatever it was paused or waited for.

        Raises:
            NotFound: Nothing tops it up; nothing was written.
        """
        path = f"{_top_up(account, wallet)}/resume"
        return (yield from self._tell(_sent("resume_top_up", "POST", path, {}), dict))

    # ------------------------------------------------------------ overage

    def overage(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Return what is reported of an account's usage beyond its units, and how far that is.

        Raises:
            NotFound: Nothing is.
        """
        return (yield from self._tell(look_call("overage", _overage(account, wallet)), dict))

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
        call = _sent("set_overage", "PUT", _overage(account, wallet), {"meter": meter})
        return (yield from self._tell(call, dict))

    def stop_overage(self, account: str, wallet: str = WALLET_DEFAULT) -> Steps[Shown]:
        """Report nothing more; set again, it goes on from where it stopped.

        Raises:
            NotFound: Nothing is reported; nothing was written.
        """
        path = f"{_overage(account, wallet)}/stop"
        return (yield from self._tell(_sent("stop_overage", "POST", path, {}), dict))

    def resolve_overage(
        self, account: str, *, arrived: bool, wallet: str = WALLET_DEFAULT
    ) -> Steps[Shown]:
        """Say whether a batch in doubt arrived, as the provider's own pages show; then go on.

        Raises:
            InvalidInput: Nothing is in doubt, or not any more; nothing was written.
            NotFound: Nothing is reported; nothing was written.
        """
        path = f"{_overage(account, wallet)}/resolve"
        call = _sent("resolve_overage", "POST", path, {"arrived": arrived})
        return (yield from self._tell(call, dict))

    # ------------------------------------------------------------ webhook endpoints

    def list_endpoints(self) -> Steps[list[Shown]]:
        """Return the webhook endpoints of this project and mode, the oldest first."""
        call = look_call("list_endpoints", "/v1/webhooks")
        return (yield from self._tell(call, lambda shown: list(shown["endpoints"])))

    def get_endpoint(self, endpoint_id: str) -> Steps[Shown]:
        """Return one webhook endpoint, without its secret.

        Raises:
            NotFound: There is no such endpoint in this project and mode.
        """
        return (yield from self._tell(look_call("get_endpoint", _endpoint(endpoint_id)), dict))

    def make_endpoint(
        self,
        url: str,
        *,
        events: Sequence[str] = ("*",),
        format_: Format = "tillroll",
        description: str | None = None,
        request_id: str | None = None,
    ) -> Steps[Shown]:
        """Make a webhook endpoint; its `secret` is in this answer only.

        It is None where an earlier attempt made it and its answer was lost: then rotate it.

        Args:
            url: Where events are sent; https to a public address, unless the service allows others.
            events: Types of events, or their beginnings, such as "grant.*"; "*" is all.
            format_: In whose words.
            description: What it is for.
            request_id: Repeat it to retry; it is made once.

        Raises:
            InvalidInput: It cannot be one, or there are too many; nothing was written.
        """
        body: Shown = {"url": url, "events": _listed(events), "format": format_}
        if description is not None:
            body["description"] = description
        call = _keyed("make_endpoint", "/v1/webhooks", body, request_id)
        return (yield from self._tell(call, dict))

    def change_endpoint(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        format_: Format | None = None,
        description: str | None = None,
        disabled: bool | None = None,
    ) -> Steps[Shown]:
        """Change a webhook endpoint; what is left out stays.

        Args:
            endpoint_id: Which.
            url: Where events are sent.
            events: Types of events, or their beginnings.
            format_: In whose words.
            description: What it is for; "" for nothing.
            disabled: True to send nothing; False to send again and forget its failures.

        Raises:
            NotFound: There is no such endpoint; nothing was written.
            InvalidInput: It cannot be so; nothing was written.
        """
        given = {
            "url": url,
            "events": None if events is None else _listed(events),
            "format": format_,
            "description": description,
            "disabled": disabled,
        }
        path = _endpoint(endpoint_id)
        return (yield from self._tell(_sent("change_endpoint", "PATCH", path, given), dict))

    def remove_endpoint(self, endpoint_id: str) -> Steps[Shown]:
        """Remove a webhook endpoint; what it did not get by now is given up.

        Raises:
            NotFound: There is no such endpoint, or no longer; nothing was written.
        """
        call = send_call("remove_endpoint", "DELETE", _endpoint(endpoint_id), None, writes=True)
        return (yield from self._tell(call, dict))

    def rotate_endpoint(self, endpoint_id: str, *, overlap: Span | None = None) -> Steps[Shown]:
        """Give a webhook endpoint a new `secret`; the one before is signed with too, for a while.

        Asked again after a lost answer it makes one more; both are good until the overlap is over.

        Args:
            endpoint_id: Which.
            overlap: How long the secrets before stay good; a day if left out.

        Raises:
            NotFound: There is no such endpoint; nothing was written.
            InvalidInput: The overlap is none; nothing was written.
        """
        path = f"{_endpoint(endpoint_id)}/rotate"
        call = _sent("rotate_endpoint", "POST", path, {"overlap": overlap})
        return (yield from self._tell(call, dict))

    # ------------------------------------------------------------ deliveries

    def list_deliveries(
        self,
        *,
        endpoint: str | None = None,
        event: str | None = None,
        state: DeliveryState | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Steps[Shown]:
        """Return `deliveries`, the newest first, each with its attempts, and `next`.

        Args:
            endpoint: To this endpoint only.
            event: Of this event only.
            state: Only those that are "pending", "delivered" or "dead".
            after: The `next` of the page before.
            limit: At most so many.

        Raises:
            InvalidInput: The place is none, or the limit is out of bounds.
        """
        call = look_call(
            "list_deliveries",
            "/v1/deliveries",
            endpoint=endpoint,
            event=event,
            state=state,
            after=after,
            limit=limit,
        )
        return (yield from self._tell(call, dict))

    def get_event(self, event_id: str) -> Steps[Shown]:
        """Return an `event` as it is sent, and its `deliveries`.

        Raises:
            NotFound: There is no such event here, or no longer.
        """
        call = look_call("get_event", f"/v1/events/{named(event_id, 'event_id')}")
        return (yield from self._tell(call, dict))

    def send_again(self, *, endpoint: str | None = None, event: str | None = None) -> Steps[int]:
        """Have deliveries tried again, from the first attempt on; return how many.

        Args:
            endpoint: To this endpoint only.
            event: This event only, to that endpoint, whatever came of it; without it, all that
                is dead.

        Raises:
            NotFound: There is no such endpoint or delivery; nothing was written.
            InvalidInput: An event without an endpoint; nothing was written.
        """
        given = {"endpoint": endpoint, "event": event}
        queued, more = 0, True
        while more:  # a call takes so many
            call = _sent("send_again", "POST", "/v1/deliveries/send-again", given)
            shown = yield from self._tell(call, dict)
            queued, more = queued + int(shown["queued"]), bool(shown["more"])
        return queued


def named(value: str, name: str) -> str:
    """Return a name as a part of a path.

    Raises:
        InvalidInput: It is no text that could be stored.
    """
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInput(f"{name} must be a text, whole and well encoded") from None
    return part(value)


def _sent(verb: str, method: str, path: str, given: dict[str, Any]) -> Call:
    """Return a call that changes something and may be repeated; what is None is left out."""
    body = {name: value for name, value in given.items() if value is not None}
    return send_call(verb, method, path, body, writes=True)


def _keyed(verb: str, path: str, body: Shown, request_id: str | None) -> Call:
    """Return a call that is carried out once for each request id."""
    name = new_id() if request_id is None else request_id
    if not isinstance(name, str) or not name or name != name.strip(" \t"):
        raise InvalidInput("request_id must be a text that does not begin or end with a blank")
    return replace(send_call(verb, "POST", path, body, writes=True), request_id=name)


def _listed(events: Sequence[str]) -> list[str]:
    return [events] if isinstance(events, str) else list(events)


def _top_up(account: str, wallet: str) -> str:
    return f"/v1/accounts/{named(account, 'account')}/top-ups/{named(wallet, 'wallet')}"


def _overage(account: str, wallet: str) -> str:
    return f"/v1/accounts/{named(account, 'account')}/overage/{named(wallet, 'wallet')}"


def _endpoint(endpoint_id: str) -> str:
    return f"/v1/webhooks/{named(endpoint_id, 'endpoint_id')}"


__all__ = ["Services", "named"]
