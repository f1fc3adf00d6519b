"""The shipped conformance suite, through a client: the service behaves like the ledger it keeps."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tillroll.testing import conformance
from tillroll.testing.served import Served

# What is about the store and not about the verbs, which no client has.
BELOW_THE_VERBS = {
    "documents_are_kept_by_kind_and_name",
    "the_registry_counts_transactions",
    "a_document_rolled_back_leaves_no_trace",
    "two_writers_give_no_number_twice",
    "a_delivery_is_taken_by_one",
    "of_many_that_take_one_gets_it",
    "the_dead_can_be_sent_again",
    "deliveries_are_paged_newest_first",
    "old_events_are_pruned_but_not_what_waits",
    "a_job_is_one_holders_until_its_lease_ends",
    "events_are_written_with_their_entries",
    "an_alert_is_told_once_a_crossing",
    "a_grant_that_expires_soon_is_told_by_the_clock",
    "a_note_is_written_by_who_saw_its_last_version",
    "a_note_is_deleted_by_who_saw_its_last_version",
    "an_id_made_for_a_request_is_never_used_twice",
    "notes_are_found_by_account_and_by_what_is_due",
    "a_note_rolled_back_leaves_no_trace",
    "a_balance_that_falls_low_makes_its_note_due",
    "of_writers_at_once_each_has_seen_the_last_note",
}
# A service says who acts as "the key/on whose behalf"; the checks want the second alone.
BY_A_KEY = {"every_charge_is_explained", "every_refusal_is_explained"}
CHECKS = [check.__name__ for check in conformance.CHECKS]


def through_a_client(clock: Callable[[], datetime]) -> Any:
    """Return a client that looks like a ledger to the suite."""
    running = Served(clock=clock)
    client: Any = running.client()
    close = client.close

    def close_both() -> None:
        close()
        running.close()

    client.store = running.engine.store
    client.book_due = running.ledger.book_due
    client.close = close_both
    return client


@pytest.mark.parametrize("name", [n for n in CHECKS if n not in BELOW_THE_VERBS | BY_A_KEY])
def test_conformance_through_a_client(name: str):
    report = conformance.run(through_a_client, only=name)
    assert report.ok, str(report)


def test_what_is_left_out_is_there():
    assert set(CHECKS) >= BELOW_THE_VERBS | BY_A_KEY
