"""The arithmetic of the price book: amounts, refusals, explanations, versions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import (
    Meters,
    Price,
    PriceBook,
    Priced,
    Rate,
    Tier,
    Unpriced,
    check_meters,
    clashes_among,
    compiled,
    content_digest,
    decode_version,
    encode_version,
    explain_price,
    new_version,
    price_hold,
    price_request,
    problems_of,
    rule_name,
)

D = Decimal
MILLION = 1_000_000


def book(*prices: Price, overrides: Any = None) -> PriceBook:
    return PriceBook().adding(new_version(1, prices, overrides=overrides))


def ask(held: PriceBook, operation: str, meters: Meters | None = None, **options: Any) -> Any:
    options = {"account_ref": "acme", "at": 0, **options}
    return price_request(held, operation, meters or {}, **options)


def flat(units: int | str, per: int = 1, **options: Any) -> Rate:
    return Rate(units=D(units), per=per, **options)


IMAGE = Price("image.generate", per_request=D(20))
CHAT = Price(
    "llm.chat",
    model="gpt-5*",
    rates={
        "input_tokens": flat("2.50", MILLION),
        "cached_tokens": flat("0.25", MILLION),
        "output_tokens": flat(10, MILLION),
    },
    cached_within_input=True,
    reasoning_within_output=True,
)
SIZES = Price(
    "image.edit",
    rates={"images": Rate(units={"1024x1024": D(20), "512x512": D(8)}, by="size")},
)
GRADUATED = (Tier(D(3), 10), Tier(D(2), 25), Tier(D(1)))


class TestAmounts:
    @pytest.mark.parametrize(
        ("price", "meters", "attributes", "exact"),
        [
            (IMAGE, {}, None, "20"),
            (Price("free"), {}, None, "0"),
            (CHAT, {"input_tokens": 1200}, None, "0.003"),
            (CHAT, {"input_tokens": 1200, "cached_tokens": 200}, None, "0.00255"),
            (CHAT, {"output_tokens": 50, "reasoning_tokens": 50}, None, "0.0005"),
            (CHAT, {"input_tokens": 10, "cache_write_tokens": 4}, None, "0.000025"),
            (CHAT, {}, None, "0"),
            (SIZES, {"images": 3}, {"size": "512x512"}, "24"),
            (SIZES, {}, None, "0"),
            (Price("v", rates={"seconds": flat("0.5")}), {"seconds": D("2.5")}, None, "1.25"),
            (Price("v", per_request=D(1), rates={"s": flat(6, 60)}), {"s": 5}, None, "1.5"),
            (Price("t", rates={"n": Rate(tiers=GRADUATED)}), {"n": 10}, None, "30"),
            (Price("t", rates={"n": Rate(tiers=GRADUATED)}), {"n": 30}, None, "65"),
            (Price("t", rates={"n": Rate(tiers=GRADUATED)}), {"n": D("10.5")}, None, "31"),
            (Price("t", rates={"n": Rate(tiers=GRADUATED, mode="volume")}), {"n": 10}, None, "30"),
            (Price("t", rates={"n": Rate(tiers=GRADUATED, mode="volume")}), {"n": 11}, None, "22"),
            (Price("t", rates={"n": Rate(tiers=GRADUATED, mode="volume")}), {"n": 26}, None, "26"),
        ],
    )
    def test_table(
        self, price: Price, meters: Meters | None, attributes: dict[str, str] | None, exact: str
    ):
        model = None if price.model is None else "gpt-5-mini"
        priced = ask(book(price), price.operation, meters, model=model, attributes=attributes)
        assert isinstance(priced, Priced)
        assert priced.exact == D(exact)
        assert priced.units == D(exact).scaleb(6)

    def test_other_values_of_an_attribute_pay_the_star(self):
        rate = Rate(units={"hd": D(9), "*": D(5)}, by="quality")
        held = book(Price("i", rates={"images": rate}))
        assert ask(held, "i", {"images": 1}, attributes={"quality": "hd"}).exact == 9
        assert ask(held, "i", {"images": 1}, attributes={"quality": "sd"}).exact == 5
        assert ask(held, "i", {"images": 1}).exact == 5

    def test_long_context_prices_pick_the_tier_by_another_meter(self):
        tiers = (Tier(D(1), 200), Tier(D(2)))
        rates = {
            "input_tokens": Rate(tiers=tiers, mode="volume", tiers_by=("input_tokens",)),
            "output_tokens": Rate(tiers=tiers, mode="volume", tiers_by=("input_tokens",)),
            "cached_tokens": flat(0),
        }
        held = book(Price("l", rates=rates, cached_within_input=True))
        assert ask(held, "l", {"input_tokens": 200, "output_tokens": 900}).exact == 1100
        assert ask(held, "l", {"input_tokens": 201, "output_tokens": 900}).exact == 2202
        # The whole context decides, cached or not; only the rest pays.
        cached = {"input_tokens": 201, "cached_tokens": 200, "output_tokens": 1}
        assert ask(held, "l", cached).exact == 4

    def test_meters_within_meters_within_meters(self):
        rates = {
            "input_tokens": flat(1),
            "cache_write_tokens": flat(10),
            "cache_write_1h_tokens": flat(100, within="cache_write_tokens"),
        }
        held = book(Price("l", rates=rates, cached_within_input=True))
        meters = {"input_tokens": 9, "cache_write_tokens": 5, "cache_write_1h_tokens": 2}
        assert ask(held, "l", meters).exact == 4 * 1 + 3 * 10 + 2 * 100

    @pytest.mark.parametrize(
        ("seconds", "exact", "units"),
        [(1, "0.5", 500_000), (30, "3", 3_000_000), (99, "5", 5_000_000)],
    )
    def test_minimum_and_maximum(self, seconds: int, exact: str, units: int):
        price = Price("v", rates={"s": flat("0.1")}, minimum=D("0.5"), maximum=D(5))
        priced = ask(book(price), "v", {"s": seconds})
        assert (priced.exact, priced.units) == (D(exact), units)

    @pytest.mark.parametrize(
        ("rounding", "cents", "units"),
        [
            ("up", "2.0000001", 3),
            ("up", "2", 2),
            ("half_even", "2.5", 2),
            ("half_even", "3.5", 4),
            ("half_even", "2.51", 3),
            ("carry", "2.9", 2),
        ],
    )
    def test_rounding(self, rounding: Any, cents: str, units: int):
        price = Price("x", per_request=D(cents), rounding=rounding)
        assert ask(book(price), "x", scale=0).units == units

    def test_a_rate_that_never_ends_is_rounded_once_and_exactly(self):
        held = book(Price("x", rates={"n": flat(1, 3)}))
        assert ask(held, "x", {"n": 3}).units == 1_000_000
        assert ask(held, "x", {"n": 1}).units == 333_334
        assert ask(held, "x", {"n": 3 * 10**12}, scale=0).units == 10**12

    def test_carry_hands_the_rest_on(self):
        held = book(Price("x", per_request=D("0.4"), rounding="carry"))
        residual, charged = D(0), []
        for _ in range(5):
            priced = ask(held, "x", scale=0, residual=residual)
            charged.append(priced.units)
            residual = priced.residual_after
        assert charged == [0, 0, 1, 0, 1]
        assert residual == 0

    def test_other_roundings_leave_a_residual_alone(self):
        assert ask(book(IMAGE), "image.generate", residual=D("0.3")).residual_after == D("0.3")

    @pytest.mark.parametrize("residual", ["-1", "NaN", "Infinity"])
    def test_a_malformed_residual_is_refused(self, residual: str):
        held = book(Price("x", per_request=D("0.4"), rounding="carry"))
        with pytest.raises(InvalidInput, match="residual"):
            ask(held, "x", residual=D(residual))

    def test_the_answer_to_a_weight_is_kept_per_scale(self):
        held = book(IMAGE)
        assert ask(held, "image.generate") is ask(held, "image.generate")
        assert ask(held, "image.generate", scale=2).units == 2000


class TestMatching:
    BOOK = (
        Price("llm.*", per_request=D(1)),
        Price("llm.chat.*", per_request=D(2)),
        Price("llm.chat.long", per_request=D(3)),
        Price("llm.chat.long", model="gpt-*", per_request=D(4)),
        Price("llm.chat.long", model="gpt-5*", per_request=D(5)),
        Price("llm.chat.long", model="gpt-5", per_request=D(6)),
        Price("*", model="gpt-5", per_request=D(7)),
    )

    @pytest.mark.parametrize(
        ("operation", "model", "units"),
        [
            ("llm.embed", None, 1),
            ("llm.embed", "gpt-5", 1),
            ("llm.chat.short", None, 2),
            ("llm.chat.long", None, 3),
            ("llm.chat.long", "claude", 3),
            ("llm.chat.long", "gpt-4", 4),
            ("llm.chat.long", "gpt-5-mini", 5),
            ("llm.chat.long", "gpt-5", 6),
            ("image", "gpt-5", 7),
        ],
    )
    @pytest.mark.parametrize("backwards", [False, True])
    def test_the_most_specific_rule_wins_in_any_order(
        self, operation: str, model: str | None, units: int, *, backwards: bool
    ):
        rules = self.BOOK[::-1] if backwards else self.BOOK
        assert ask(book(*rules), operation, model=model).exact == units

    def test_equally_specific_patterns_go_by_order(self):
        one, two = Price("a*", per_request=D(1)), Price("*a", per_request=D(2))
        assert ask(book(one, two), "aa").exact == 1
        assert ask(book(two, one), "aa").exact == 2

    def test_an_override_goes_first_for_its_account_only(self):
        held = book(IMAGE, overrides={"acme": [Price("image.*", per_request=D(15))]})
        own = ask(held, "image.generate")
        assert (own.exact, own.rule) == (15, "image.*@acme")
        other = ask(held, "image.generate", account_ref="other")
        assert (other.exact, other.rule) == (20, "image.generate")

    def test_a_limited_time_beats_the_standing_rule(self):
        sale = Price("image.generate", per_request=D(10), valid_from=100, valid_to=200)
        held = book(IMAGE, sale)
        prices = [int(ask(held, "image.generate", at=at).exact) for at in (99, 100, 199, 200)]
        assert prices == [20, 10, 10, 20]

    def test_patterns_take_other_signs_literally(self):
        held = book(Price("a.b*", per_request=D(1)))
        assert isinstance(ask(held, "axb"), Unpriced)
        assert isinstance(ask(held, "a.b\nc"), Priced)

    def test_remembered_lookups_are_bounded(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(compiled, "LOOKUPS_MAX", 10)
        held = book(Price("*", per_request=D(1)))
        for i in range(25):
            assert ask(held, f"op-{i}").units == 1_000_000
            assert isinstance(ask(book(IMAGE), f"op-{i}"), Unpriced)
        assert len(held.version(1).index.book.found) <= 10

    def test_versions_are_pinned(self):
        first = new_version(1, [IMAGE])
        held = (
            PriceBook()
            .adding(first)
            .adding(new_version(2, [Price("image.generate", per_request=D(25))]))
        )
        assert ask(held, "image.generate").version == 2
        assert ask(held, "image.generate", version=1).exact == 20
        with pytest.raises(InvalidInput, match="never change"):
            held.adding(new_version(1, [Price("other")]))
        assert held.adding(first).current == 1
        with pytest.raises(InvalidInput, match="price version 9 is not known"):
            held.version(9)


class TestUnpriced:
    @pytest.mark.parametrize(
        ("held", "operation", "meters", "options", "reason", "known"),
        [
            (PriceBook(), "x", {}, {}, "the price book is empty", ()),
            (book(IMAGE), "x", {}, {"version": 7}, "price version 7 is not known", ()),
            (
                book(IMAGE), "image.generated", {}, {},
                "did you mean image.generate?", ("image.generate",),
            ),
            (book(CHAT), "llm.chat", {}, {}, "is priced by model", ("gpt-5*",)),
            (
                book(CHAT), "llm.chat", {}, {"model": "claude"},
                "has no price for model claude", ("gpt-5*",),
            ),
            (
                book(Price("x", valid_to=0)), "x", {}, {"at": 5},
                "not at 1970-01-01T00:00:00.000005Z", ("x until 1970-01-01T00:00:00Z",),
            ),
            (book(IMAGE), "image.generate", {"images": 1}, {}, "knows no meter images", ()),
            (
                book(CHAT), "llm.chat", {"input_token": 1}, {"model": "gpt-5"},
                "no rate for meter input_token (did you mean input_tokens?)",
                (
                    "input_tokens", "cached_tokens", "output_tokens",
                    "cache_write_tokens", "reasoning_tokens",
                ),
            ),
            (book(SIZES), "image.edit", {"images": 1}, {}, "priced by size, which is missing",
             ("1024x1024", "512x512")),
            (book(SIZES), "image.edit", {"images": 1}, {"attributes": {"size": "9x9"}},
             "'9x9' has no rate", ("1024x1024", "512x512")),
            (
                book(CHAT), "llm.chat", {"input_tokens": 5, "cached_tokens": 6},
                {"model": "gpt-5"}, "cached_tokens 6 is more than input_tokens 5", None,
            ),
            (
                book(CHAT), "llm.chat", {"output_tokens": D("0.5"), "reasoning_tokens": 1},
                {"model": "gpt-5"}, "reasoning_tokens 1 is more than output_tokens 0.5", None,
            ),
        ],
    )  # fmt: skip
    def test_table(
        self,
        held: PriceBook,
        operation: str,
        meters: Meters | None,
        options: Any,
        reason: str,
        known: tuple[str, ...] | None,
    ):
        answer = ask(held, operation, meters, **options)
        assert isinstance(answer, Unpriced)
        assert reason in answer.reason
        assert known is None or answer.known == known

    @pytest.mark.parametrize(
        "quantity",
        [
            1.5,
            True,
            "3",
            None,
            -1,
            D(-1),
            D("NaN"),
            D("Infinity"),
            2**53,
            D("1e999999"),
            D("1e-10"),
        ],
    )
    def test_malformed_quantities_are_refused(self, quantity: Any):
        with pytest.raises(InvalidInput, match="meter s:"):
            check_meters({"s": quantity})
        with pytest.raises(InvalidInput, match="meter s:"):
            ask(book(Price("v", rates={"s": flat(1)})), "v", {"s": quantity})

    def test_meters_are_bounded(self):
        with pytest.raises(InvalidInput, match="at most 64 meters"):
            check_meters({f"m{i}": 1 for i in range(65)})
        check_meters({"a": 2**53 - 1, "b": D("0.000000001"), "c": 0})


class TestHold:
    def hold(self, price: Price, meters: Meters | None):
        return price_hold(book(price), price.operation, meters, account_ref="acme", at=0)

    def test_missing_meters_take_their_maximum(self):
        price = Price(
            "l",
            rates={"input_tokens": flat(1), "output_tokens": flat(2)},
            maximum_meters={"output_tokens": 100},
        )
        assert self.hold(price, {"input_tokens": 7}).exact == 207
        assert self.hold(price, {"input_tokens": 7, "output_tokens": 3}).exact == 13

    def test_nothing_known_holds_the_maximum_or_says_so(self):
        assert self.hold(Price("l", rates={"n": flat(1)}, maximum=D(9)), {}).exact == 9
        answer = self.hold(Price("l", rates={"n": flat(1)}), {})
        assert isinstance(answer, Unpriced)
        assert "needs quantities" in answer.reason

    def test_weights_and_refusals_are_those_of_a_request(self):
        assert self.hold(IMAGE, {}).units == 20_000_000
        assert isinstance(self.hold(IMAGE, {"x": 1}), Unpriced)
        empty = price_hold(PriceBook(), "x", {}, account_ref="a", at=0)
        assert isinstance(empty, Unpriced)
        unknown = price_hold(book(IMAGE), "x", {}, account_ref="a", at=0)
        assert isinstance(unknown, Unpriced)

    def test_a_carried_price_is_held_rounded_up(self):
        held = self.hold(Price("l", per_request=D("0.0000001"), rounding="carry"), {})
        assert (held.units, held.residual_after) == (1, 0)


class TestExplain:
    def explain(self, price: Price, meters: Meters | None, **options: Any):
        options = {"account_ref": "acme", "at": 0, **options}
        return explain_price(book(price), price.operation, meters, **options)

    def test_a_weight(self):
        assert self.explain(IMAGE, {}) == [
            "price version 1, rule image.generate",
            "1 request x 20 = 20",
        ]

    def test_tokens_with_a_minimum(self):
        price = Price("l", rates={"input_tokens": flat("2.50", MILLION)}, minimum=D("0.01"))
        assert self.explain(price, {"input_tokens": 1200})[1:] == [
            "1,200 input_tokens x 2.5 / 1,000,000 = 0.003",
            "minimum 0.01 applies",
        ]

    def test_cached_tokens_are_told_apart(self):
        lines = self.explain(CHAT, {"input_tokens": 1200, "cached_tokens": 200}, model="gpt-5")
        assert lines[1:] == [
            (
                "1,000 input_tokens x 2.5 / 1,000,000 = 0.0025 "
                "(without 200 cached_tokens, priced apart)"
            ),
            "200 cached_tokens x 0.25 / 1,000,000 = 0.00005",
            "together 0.00255",
        ]

    def test_tiers_attributes_and_wallet(self):
        graduated = Price("t", rates={"n": Rate(tiers=GRADUATED)}, maximum=D(40), wallet="gpu")
        assert self.explain(graduated, {"n": 30})[1:] == [
            "10 n x 3 = 30 (tier up to 10)",
            "15 n x 2 = 30 (tier up to 25)",
            "5 n x 1 = 5 (last tier)",
            "together 65",
            "maximum 40 applies",
            "paid from wallet gpu",
        ]
        sizes = self.explain(SIZES, {"images": 2}, attributes={"size": "512x512"})
        assert sizes[1] == "2 images x 8 = 16 (size 512x512)"

    def test_carry_half_even_and_endless_amounts(self):
        carry = Price("x", per_request=D("0.4"), rounding="carry")
        assert self.explain(carry, {}, residual=D("0.8"), scale=0)[2:] == [
            "carried from before: 0.8",
            "charged in 0 decimals: 1",
            "carried to the next request: 0.2",
        ]
        third = Price("x", rates={"n": flat(1, 3)}, rounding="half_even")
        assert self.explain(third, {"n": 1})[1:] == [
            "1 n x 1 / 3 = 0.333333333333...",
            "rounded half to even to 6 decimals: 0.333333",
        ]
        assert self.explain(Price("x", rates={"n": flat(1, 3)}), {"n": 1})[1:] == [
            "1 n x 1 / 3 = 0.333333333333...",
            "rounded up to 6 decimals: 0.333334",
        ]

    def test_no_price(self):
        lines = explain_price(book(SIZES), "image.edti", {}, account_ref="a", at=0)
        assert lines == [
            (
                "unpriced: operation image.edti has no price in price version 1 "
                "(did you mean image.edit?)"
            ),
            "known: image.edit",
        ]


class TestVersions:
    def test_round_trip_keeps_everything(self):
        version = new_version(
            3, [CHAT, SIZES], overrides={"a": [IMAGE]}, author="mo", reason="sale", applied_at=9
        )
        assert decode_version(encode_version(version)) == version

    def test_the_digest_is_of_the_content_alone(self):
        one = new_version(1, [CHAT], author="mo", applied_at=5)
        assert new_version(2, [CHAT]).digest == one.digest
        spelled = Price("x", per_request=D("2.50"), wallet="credits")
        assert content_digest([spelled], {}) == content_digest(
            [Price("x", per_request=D("2.5"))], {}
        )
        assert content_digest([CHAT, IMAGE], {}) != content_digest([IMAGE, CHAT], {})
        assert content_digest([IMAGE], {}) != content_digest([], {"a": [IMAGE]})
        # A released digest must never change: charges are explained by it for ever.
        assert content_digest([IMAGE, CHAT, SIZES], {}) == (
            "43f4d71b2d5fbad1fe81677b532c312ee65d9a844ff13f84248d28be4cbb24e3"
        )

    def test_content_that_was_tampered_with_is_noticed(self):
        data = encode_version(new_version(1, [IMAGE])).replace(b'"20"', b'"2"')
        with pytest.raises(InvalidInput, match="does not have the content"):
            decode_version(data)
        with pytest.raises(InvalidInput, match="not a price version"):
            decode_version(b'{"number": 1}')

    def test_a_version_has_a_number_and_names_its_accounts(self):
        with pytest.raises(InvalidInput, match="count from 1, not 0"):
            new_version(0, [IMAGE])
        with pytest.raises(InvalidInput, match="an account has 1 to 255 characters"):
            new_version(1, [IMAGE], overrides={"a\n": [IMAGE]})

    @pytest.mark.parametrize("overrides", [None, {"acme": [Price("x", per_request=D(-1))]}])
    def test_a_version_is_checked(self, overrides: Any):
        prices = [] if overrides else [IMAGE, IMAGE]
        with pytest.raises(InvalidInput, match=r"priced twice|x@acme: per_request: -1 is negative"):
            new_version(1, prices, overrides=overrides)


class TestProblems:
    @pytest.mark.parametrize(
        ("price", "problem"),
        [
            (Price(""), "operation: a name has"),
            (Price("a\nb"), "operation: a name has"),
            (Price("a\x9f"), "operation: a name has"),
            (Price("a\ud800"), "operation: a name has"),
            (Price("a" * 256), "operation: a name has"),
            (Price("*a*b*c*d*"), "at most 4 stars"),
            (Price("x", model=""), "model: a name has"),
            (Price("x", wallet="w*"), "wallet: w* is not"),
            (Price("x", rates={"m*": flat(1)}), "must be an exact name"),
            (Price("x", per_request=D(-1)), "-1 is negative"),
            (Price("x", per_request=D("NaN")), "NaN is not a number"),
            (Price("x", per_request=D("1e16")), "not below 2^53"),
            (Price("x", per_request=D("1e99999")), "not below 2^53"),
            (Price("x", per_request=D("1e-19")), "more than 18 decimal places"),
            (Price("x", minimum=D(2), maximum=D(1)), "minimum 2 is more than maximum 1"),
            (Price("x", valid_from=5, valid_to=5), "valid_from is not before valid_to"),
            (Price("x", rounding="down"), "rounding 'down' is none of up, half_even, carry"),
            (Price("x", rates={f"m{i}": flat(1) for i in range(65)}), "at most 64 rates"),
            (Price("x", rates={"m": flat(1, 0)}), "per 0 is not between"),
            (Price("x", rates={"m": Rate()}), "needs either units or tiers"),
            (Price("x", rates={"m": flat(1, by="size")}), "needs units as a table"),
            (Price("x", rates={"m": Rate(units={"a": D(1)})}), "`by` must name the attribute"),
            (Price("x", rates={"m": Rate(units={}, by="size")}), "an empty table"),
            (Price("x", rates={"m": Rate(units={"a": D(-1)}, by="s")}), "units.a: -1 is negative"),
            (Price("x", rates={"m": flat(1, mode="volume")}), "need tiers"),
            (Price("x", rates={"m": Rate(tiers=(Tier(D(1), 5),))}), "must have no up_to"),
            (Price("x", rates={"m": Rate(tiers=(Tier(D(1)), Tier(D(1))))}), "tier 1 has no up_to"),
            (
                Price("x", rates={"m": Rate(tiers=(Tier(D(1), 5), Tier(D(1), 5), Tier(D(1))))}),
                "tier 2: up_to 5 is not above 5",
            ),
            (
                Price("x", rates={"m": Rate(tiers=(Tier(D(1)),), tiers_by=("m",))}),
                'tiers_by needs mode = "volume"',
            ),
            (
                Price("x", rates={"m": Rate(tiers=(Tier(D(1)),), mode="volume", tiers_by=("n",))}),
                "tiers_by: there is no rate for n",
            ),
            (Price("x", rates={"m": flat(1, within="n")}), "there is no rate for it"),
            (
                Price("x", rates={"m": flat(1, within="n"), "n": flat(1, within="m")}),
                "within goes in a circle",
            ),
            (Price("x", cached_within_input=True), "needs a rate for input_tokens"),
            (
                Price("x", rates={"cached_tokens": flat(1)}, cached_within_input=True),
                "needs a rate for input_tokens",
            ),
            (Price("x", reasoning_within_output=True), "needs a rate for output_tokens"),
            (Price("x", maximum_meters={"m": 1}), "maximum_meters.m: there is no rate"),
            (
                Price("x", rates={"m": flat(1)}, maximum_meters={"m": -1}),
                "maximum_meters.m: -1 is not between",
            ),
            (
                Price("x", rates={"m": flat(1, 3)}, rounding="carry"),
                "carry needs rates that come out even",
            ),
        ],
    )
    def test_table(self, price: Price, problem: str):
        assert problem in "; ".join(problems_of(price))

    @pytest.mark.parametrize(
        "price", [IMAGE, CHAT, SIZES, Price("x", minimum=D(0)), Price("\u00fc\u00a0\U0001fae8")]
    )
    def test_sound_rules_have_none(self, price: Price):
        assert problems_of(price) == []

    def test_windows_that_overlap_clash_and_others_do_not(self):
        def at(start: int | None, end: int | None) -> Price:
            return Price("x", valid_from=start, valid_to=end)

        def clashing(*prices: Price) -> list[tuple[int, int]]:
            return [(i, j) for i, j, _ in clashes_among(prices)]

        assert clashing(at(None, 5), at(5, None), at(None, None)) == []
        assert clashing(at(None, 6), at(5, None)) == [(0, 1)]
        assert clashing(at(1, 3), at(4, 9), at(2, 3)) == [(0, 2)]
        assert clashing(Price("x"), Price("x", model="m"), Price("x", wallet="w")) == [(0, 2)]

    def test_names(self):
        assert rule_name(CHAT) == "llm.chat/gpt-5*"
        assert rule_name(IMAGE, "acme") == "image.generate@acme"


# --- properties ------------------------------------------------------------------------------

amounts = st.decimals(min_value=0, max_value=1000, places=4)
pers = st.sampled_from([1, 3, 7, 60, 1000, MILLION])
even_pers = st.sampled_from([1, 2, 8, 1000, MILLION])
quantities = st.one_of(st.integers(0, 10**7), st.decimals(min_value=0, max_value=10**6, places=3))
scales = st.integers(0, 9)


@st.composite
def tiered(draw: Any, mode: Any = "graduated"):
    bounds = sorted(draw(st.sets(st.integers(1, 60), max_size=4)))
    tiers = [Tier(draw(amounts), bound) for bound in [*bounds, None]]
    return Rate(tiers=tuple(tiers), per=draw(pers), mode=mode)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.tuples(amounts, pers, quantities)), scales)
def test_rounding_up_never_undercharges(drawn: dict[str, tuple[Decimal, int, Any]], scale: int):
    price = Price("x", rates={meter: flat(u, per) for meter, (u, per, _) in drawn.items()})
    priced = ask(book(price), "x", {m: q for m, (_, _, q) in drawn.items()}, scale=scale)
    fair = sum((Fraction(u) / per * Fraction(q) for u, per, q in drawn.values()), Fraction())
    charged = Fraction(priced.units, 10**scale)
    assert fair <= charged < fair + Fraction(1, 10**scale)
    assert abs(Fraction(priced.exact) - fair) < Fraction(1, 10**40)


@settings(max_examples=60, deadline=None)
@given(amounts, even_pers, st.lists(quantities, max_size=20), scales)
def test_carry_keeps_the_sum_within_one_smallest_unit(
    units: Decimal, per: int, asked: list[Any], scale: int
):
    held = book(Price("x", rates={"n": flat(units, per)}, rounding="carry"))
    residual, charged = D(0), 0
    for quantity in asked:
        priced = ask(held, "x", {"n": quantity}, residual=residual, scale=scale)
        residual = priced.residual_after
        charged += priced.units
        assert 0 <= residual < D(1).scaleb(-scale)
    fair = sum((Fraction(units) / per * Fraction(quantity) for quantity in asked), Fraction())
    assert fair - Fraction(1, 10**scale) < Fraction(charged, 10**scale) <= fair
    assert Fraction(charged, 10**scale) + Fraction(residual) == fair


@settings(max_examples=60, deadline=None)
@given(tiered(), st.integers(0, 80))
def test_graduated_tiers_are_the_sum_of_their_parts(rate: Rate, quantity: int):
    priced = ask(book(Price("x", rates={"n": rate})), "x", {"n": quantity}, scale=9)
    fair = Fraction()
    for nth in range(1, quantity + 1):
        tier = next(t for t in rate.tiers if t.up_to is None or nth <= t.up_to)
        fair += Fraction(tier.units) / rate.per
    assert 0 <= Fraction(priced.units, 10**9) - fair < Fraction(1, 10**9)


@settings(max_examples=60, deadline=None)
@given(tiered(), quantities, quantities, scales, st.sampled_from(["up", "half_even"]))
def test_more_never_costs_less(rate: Rate, one: Any, other: Any, scale: int, rounding: Any):
    held = book(Price("x", rates={"n": rate}, minimum=D(1), maximum=D(5000), rounding=rounding))
    less, more = sorted([one, other])
    cheaper = ask(held, "x", {"n": less}, scale=scale)
    dearer = ask(held, "x", {"n": more}, scale=scale)
    assert cheaper.units <= dearer.units


@settings(max_examples=60, deadline=None)
@given(amounts, amounts, pers, st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_fast_way_and_the_long_way_agree(
    whole: Decimal, part: Decimal, per: int, rest: int, cached: int
):
    rates = {"input_tokens": flat(whole, per), "cached_tokens": flat(part, per)}
    held = book(Price("x", rates=rates, cached_within_input=True))
    fast = ask(held, "x", {"input_tokens": rest + cached, "cached_tokens": cached})
    # A Decimal takes the long way round.
    long = ask(held, "x", {"input_tokens": D(rest + cached), "cached_tokens": D(cached)})
    assert fast == long
    fair = (Fraction(whole) * rest + Fraction(part) * cached) / per
    assert 0 <= Fraction(fast.units, 10**6) - fair < Fraction(1, 10**6)
