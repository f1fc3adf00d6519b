"""The ids that are made where a caller gives none."""

import uuid

import pytest

from tillroll.embedded import answers
from tillroll.embedded.answers import new_id


def test_a_made_id_is_a_uuid_of_version_7():
    made = uuid.UUID(new_id())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_a_made_id_begins_with_the_time_in_milliseconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers.time, "time_ns", lambda: 0x0198_C7E2_1111 * 1_000_000)
    assert new_id().startswith("0198c7e2-1111-7")


def test_made_ids_differ():
    made = [new_id() for _ in range(2_000)]  # several times what is made ahead
    assert len(set(made)) == len(made)
