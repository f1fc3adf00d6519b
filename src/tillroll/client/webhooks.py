"""What a client asks about webhooks: endpoints, what became of their deliveries, and sending again.

A ledger in one's own process has none of these: they are the service's. Answers are what the API
shows, as plain values: times as ISO 8601.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tillroll.client.calls import change_call, keyed_call, look_call, named, send_call
from tillroll.client.conversation import Rules, Steps, ask

if TYPE_CHECKING:
    from tillroll.ledger.verbs import Span

Shown = dict[str, Any]
Format = Literal["tillroll", "licenzy"]
DeliveryState = Literal["pending", "delivered", "dead"]


class Webhooks:
    """The methods of a client that are about webhooks, as conversations."""

    rules: Rules

    # ------------------------------------------------------------ endpoints

    def list_endpoints(self) -> Steps[list[Shown]]:
        """Return the webhook endpoints of this project and mode, the oldest first."""
        call = look_call("list_endpoints", "/v1/webhooks")
        return (yield from ask(self.rules, call, lambda shown: list(shown["endpoints"])))

    def get_endpoint(self, endpoint_id: str) -> Steps[Shown]:
        """Return one webhook endpoint, without its secret.

        Raises:
            NotFound: There is no such endpoint in this project and mode.
        """
        call = look_call("get_endpoint", _endpoint(endpoint_id))
        return (yield from ask(self.rules, call, dict))

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
        call = keyed_call("make_endpoint", "/v1/webhooks", body, request_id)
        return (yield from ask(self.rules, call, dict))

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
        call = change_call("change_endpoint", "PATCH", path, given)
        return (yield from ask(self.rules, call, dict))

    def remove_endpoint(self, endpoint_id: str) -> Steps[Shown]:
        """Remove a webhook endpoint; what it did not get by now is given up.

        Raises:
            NotFound: There is no such endpoint, or no longer; nothing was written.
        """
        call = send_call("remove_endpoint", "DELETE", _endpoint(endpoint_id), None, writes=True)
        return (yield from ask(self.rules, call, dict))

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
        call = change_call("rotate_endpoint", "POST", path, {"overlap": overlap})
        return (yield from ask(self.rules, call, dict))

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
        return (yield from ask(self.rules, call, dict))

    def get_event(self, event_id: str) -> Steps[Shown]:
        """Return an `event` as it is sent, and its `deliveries`.

        Raises:
            NotFound: There is no such event here, or no longer.
        """
        call = look_call("get_event", f"/v1/events/{named(event_id, 'event_id')}")
        return (yield from ask(self.rules, call, dict))

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
            call = change_call("send_again", "POST", "/v1/deliveries/send-again", given)
            shown = yield from ask(self.rules, call, dict)
            queued, more = queued + int(shown["queued"]), bool(shown["more"])
        return queued


def _listed(events: Sequence[str]) -> list[str]:
    return [events] if isinstance(events, str) else list(events)


def _endpoint(endpoint_id: str) -> str:
    return f"/v1/webhooks/{named(endpoint_id, 'endpoint_id')}"


__all__ = ["Webhooks"]
