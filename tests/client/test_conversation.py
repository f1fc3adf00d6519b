"""One request and all its attempts: what is asked again, what is final, what is not known."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tests.client.worlds import (
    LOOK,
    UNHEARD,
    UNREACHED,
    WRITE,
    Answering,
    World,
    problem,
    reply,
)
from tillroll.client.conversation import ASKED_AGAIN, PAUSE_SECONDS_MAX, Call, Lost, Reply, converse
from tillroll.client.webhooks import Webhooks
from tillroll.ledger import errors

OK = reply(200, {"done": True})
REFUSED = problem(402, "insufficient_units", needed="5", available="1", held="0", account="acme")


def ask(world: World, call: Call = WRITE) -> Any:
    return world.run(converse(call, world.rules, world.rules.ends(), lambda shown: shown["done"]))


def error_of(kind: type[errors.TillrollError], *heard: Reply | Lost, call: Call = WRITE) -> Any:
    world = World([*heard, *[heard[-1]] * 100])
    with pytest.raises(kind) as raised:
        ask(world, call)
    assert type(raised.value) is kind
    raised.value.asked = len(world.sent)  # type: ignore[attr-defined]
    return raised.value


def test_what_is_answered_is_asked_once():
    world = World([OK])
    assert ask(world) is True
    assert (len(world.sent), world.slept) == (1, [])


@pytest.mark.parametrize("status", sorted(ASKED_AGAIN))
def test_what_may_be_over_soon_is_asked_again(status: int):
    world = World([problem(status, "anything"), UNHEARD, UNREACHED, OK])
    assert ask(world) is True
    assert world.sent == [WRITE] * 4  # byte for byte, the id too


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "idempotency_key_missing", errors.InvalidInput),
        (401, "invalid_api_key", errors.Unauthorized),
        (401, "missing_bearer_token", errors.Unauthorized),
        (402, "insufficient_units", errors.InsufficientUnits),
        (403, "forbidden", errors.Forbidden),
        (403, "account_frozen", errors.AccountFrozen),
        (404, "hold_not_found", errors.HoldNotFound),
        (409, "hold_finalized", errors.HoldFinalized),
        (410, "hold_expired", errors.HoldExpired),
        (413, "body_too_large", errors.InvalidInput),
        (422, "idempotency_conflict", errors.IdempotencyConflict),
        (500, "internal_error", errors.OutcomeUnknown),
    ],
)
def test_every_other_answer_is_final(status: int, code: str, kind: type[errors.TillrollError]):
    error = error_of(kind, problem(status, code))
    assert (error.asked, error.code, error.request_id) == (1, code, "r")


def test_a_refusal_is_sent_once_and_whole():
    refusal = error_of(errors.InsufficientUnits, REFUSED)
    assert refusal.asked == 1
    assert (refusal.needed, refusal.available, refusal.held) == (5, 1, 0)
    assert refusal.account == "acme"


def test_a_newer_service_is_understood_as_well_as_can_be():
    refusal = error_of(errors.Refused, problem(402, "moon_phase"))
    assert (refusal.code, str(refusal)) == ("moon_phase", "it is moon_phase")
    assert error_of(errors.InvalidInput, problem(422, "too_blue")).code == "too_blue"
    assert error_of(errors.TooManyRequests, problem(429, "slow_down")).code == "slow_down"
    away = error_of(errors.StoreUnavailable, problem(503, "moving", written="nothing"))
    assert (away.code, away.written) == ("moving", "nothing")


def test_pauses_grow_are_jittered_and_bounded():
    world = World([UNREACHED] * 40 + [OK], timeout=1_000)
    assert ask(world)
    assert world.slept[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(world.slept) == PAUSE_SECONDS_MAX
    world.rules.chance = lambda: 0.5
    assert world.rules.pause(2) == 0.1


def test_the_service_says_how_long_to_wait():
    world = World([problem(503, "overloaded", after=7), OK])
    assert ask(world)
    assert world.slept == [7]


def test_the_service_says_until_when_to_wait():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    world = World([reply(503, {"code": "overloaded"}, retry_after=soon), OK])
    assert ask(world)
    assert 15 < world.slept[0] <= 20
    for nonsense in ("soon", "-3", "9" * 400, "Wed, 99 Abc"):
        assert ask(World([reply(429, None, retry_after=nonsense), OK], timeout=1e12))


def test_who_must_wait_longer_than_there_is_time_is_told_at_once():
    world = World([problem(503, "overloaded", after=60)])
    with pytest.raises(errors.Overloaded):
        ask(world)
    assert world.slept == []


def test_everything_ends_at_the_deadline():
    world = World([UNREACHED] * 1_000, timeout=30)
    with pytest.raises(errors.StoreUnavailable, match="nothing was written") as raised:
        ask(world)
    assert world.now <= 1_030
    assert sum(world.slept) <= 30
    assert raised.value.written == "nothing"
    assert raised.value.request_id == "r"
    assert all(0 < seconds <= 10 for seconds in world.given)  # a write leaves time for another


def test_a_long_look_may_take_all_the_time():
    world = World([OK])
    assert ask(world, LOOK)
    assert world.given == [30.0]


@pytest.mark.parametrize(
    "lost",
    [
        UNHEARD,
        reply(200, {"another": "shape"}),
        Reply(200, {}, b'{"done": tr'),
        Reply(200, {}, b"<html>Welcome to the hotel"),
        reply(204),
        reply(502),
        reply(503),
        reply(504, {"message": "gateway"}),
        problem(503, "outcome_unknown", written="unknown"),
    ],
)
def test_what_may_have_been_done_is_never_said_to_be_undone(lost: Reply | Lost):
    assert error_of(errors.OutcomeUnknown, lost).request_id == "r"
    after = error_of(errors.OutcomeUnknown, lost, UNREACHED)
    assert "same request_id" in str(after)


def test_what_looks_only_has_no_unknown_outcome():
    error = error_of(errors.StoreUnavailable, UNHEARD, call=LOOK)
    assert error.written == "nothing"
    assert error_of(errors.StoreUnavailable, reply(502), call=LOOK).written == "nothing"


def test_an_answer_of_the_ledger_settles_what_was_lost_before():
    assert ask(World([UNHEARD, OK]))
    said_no = problem(502, "provider_refused")
    known = problem(422, "idempotency_conflict"), problem(404, "not_found")
    for settling in (REFUSED, *known, said_no):
        with pytest.raises(errors.TillrollError) as raised:
            ask(World([UNHEARD, settling]))
        assert raised.value.written == "nothing"


def test_a_call_without_an_id_may_be_refused_for_what_it_did_itself():
    call = structs.replace(WRITE, request_id=None)
    for refused in (problem(404, "not_found"), problem(422, "invalid_input")):
        with pytest.raises(errors.OutcomeUnknown):
            ask(World([UNHEARD, refused]), call)
        with pytest.raises((errors.NotFound, errors.InvalidInput)):
            ask(World([refused]), call)


def test_all_that_is_dead_is_sent_again_in_as_many_calls_as_it_takes():
    parts = {"queued": 10_000, "more": True}, {"queued": 5, "more": False}
    world = World([reply(200, part) for part in parts])
    asking = Webhooks()
    asking.rules = world.rules
    assert world.run(asking.send_again()) == 10_005
    assert [call.path for call in world.sent] == ["/v1/deliveries/send-again"] * 2


@pytest.mark.parametrize(
    "elsewhere",
    [problem(401, "invalid_api_key"), problem(413, "body_too_large"), reply(404), reply(301)],
)
def test_an_answer_of_the_edge_does_not(elsewhere: Reply):
    world = World([UNHEARD, elsewhere])
    with pytest.raises(errors.OutcomeUnknown) as raised:
        ask(world)
    assert raised.value.__cause__ is not None


def test_a_client_closed_meanwhile_does_not_claim_more_than_it_knows():
    def closing_after(*heard: Reply | Lost) -> World:
        left = iter(heard)

        def answer(_: Call) -> Reply | Lost:
            for one in left:
                return one
            raise errors.StoreClosed("closed")

        return Answering(answer)

    with pytest.raises(errors.StoreClosed):
        ask(closing_after(UNREACHED))
    with pytest.raises(errors.OutcomeUnknown):
        ask(closing_after(UNHEARD))


def test_another_server_than_ours_is_named():
    assert "address" in str(error_of(errors.StoreUnavailable, reply(404)))
    assert "address" in str(error_of(errors.StoreUnavailable, reply(307)))


# ---------------------------------------------------------------- whatever happens

FAULTS = st.sampled_from(
    ["unreached", "lost before", "lost after", "garbage", "busy", "unknown", "gateway", "fine"]
)


class Once:
    """A service that does each id once, behind a network that does what it wants."""

    def __init__(self, faults: list[str], *, poor: bool) -> None:
        self.faults = faults
        self.poor = poor
        self.effects: list[str] = []
        self.refusals: set[str] = set()

    def __call__(self, call: Call) -> Reply | Lost:
        fault = self.faults.pop(0) if self.faults else "unreached"
        if fault == "unreached":
            return UNREACHED
        if fault == "busy":
            return problem(503, "store_busy", written="nothing")
        if fault not in ("lost before", "gateway"):
            self.do(str(call.request_id))
        if fault == "fine":
            return REFUSED if self.poor else OK
        if fault == "garbage":
            return Reply(200, {}, b"\x00\xff")
        if fault == "unknown":
            return problem(503, "outcome_unknown", written="unknown")
        return reply(502) if fault == "gateway" else UNHEARD

    def do(self, request_id: str) -> None:
        if self.poor:
            self.refusals.add(request_id)
        elif request_id not in self.effects:
            self.effects.append(request_id)


@given(st.lists(FAULTS, max_size=12), st.sampled_from(["poor", "rich"]), st.integers(0, 2))
def test_whatever_happens_there_is_one_id_and_one_effect(faults: list[str], purse: str, again: int):
    poor = purse == "poor"
    service = Once(list(faults), poor=poor)
    answers: list[object] = []
    worlds = []
    for _ in range(1 + again):  # a caller may ask again, by the same id
        world = Answering(service)
        worlds.append(world)
        try:
            answers.append(ask(world))
        except errors.TillrollError as error:
            answers.append(error)
    assert {call.request_id for world in worlds for call in world.sent} == {"r"}
    assert len(service.effects) <= 1
    effects_seen = len(service.effects)
    for answer in answers:
        if answer is True:
            assert effects_seen == 1, "acknowledged, and not done"
        elif isinstance(answer, errors.Refused):
            assert poor
            assert effects_seen == 0
    first = answers[0]
    if isinstance(first, errors.StoreUnavailable) and len(answers) == 1:
        assert effects_seen == 0, "said to be unwritten, and done"
    for world in worlds:
        assert world.now <= 1_030, "the deadline was passed"
