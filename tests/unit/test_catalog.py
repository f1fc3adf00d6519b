"""The price book as a file, its plans, its impact, and proposals from vendor prices."""

from __future__ import annotations

import json
import random
import re
import sys
import tomllib
import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tillroll.catalog
from tillroll import catalog
from tillroll.catalog import (
    Holding,
    InvalidPriceBook,
    PriceFile,
    PricesPackageMissing,
    UsageRecord,
    book,
    diff,
    dump,
    effects,
    impact,
    load,
    models_in_book,
    parse,
    propose,
    schema,
    template,
)
from tillroll.catalog.products import TABLES, GrantTable, MoneyTable
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import (
    Price,
    PriceBook,
    Priced,
    PriceVersion,
    Rate,
    Tier,
    content_digest,
    decode_version,
    encode_version,
    new_version,
    price_request,
    problems_of,
)
from tillroll.ledger.products import UNLIMITED, Coupon, Products, best, check_products

D = Decimal
ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "price-book.md"
CONCEPTS = ROOT / "docs" / "concepts" / "prices.md"

SOLD = """
[pack.starter]
units = 500
price = { amount = "9.99", currency = "USD" }
expires = "365d"
wallet = "gpu"
category = "promo"
priority = 2
applies_to = ["image.*"]
stripe_price = "price_1"

[plan.pro]
grants = [
  { units = 1_000, rollover_min = 1, rollover_max = "200.5" },
  { units = 5, name = "bonus", every = "week", count = 2, priority = 1, applies_to = ["x"] },
]
features = { "hd" = true, seats = "unlimited" }
every = "year"
count = 2
trial = "1d12h30m0.500000s"
price = { amount = 99, currency = "USD" }
stripe_price = "price_2"

[pass.day]
lasts = "90s"
features = { model = "large" }
price = { amount = "1.5", currency = "EUR" }

[feature.hd]

[feature.seats]
kind = "limit"
default = 1

[feature.model]
kind = "config"
default = "small"

[coupon.welcome]
units = "2.5"
expires = "7d"
most = 3
wallet = "gpu"
priority = -1
applies_to = ["image.generate"]

[alert.low]
wallet = "gpu"
below = "1.5"

[alert.part]
percent = 20

[alert.days]
days_left = 3

[alert.caps]
budget = [80, 90, 100]

[alert.soon]
expiring = [30, 7, 1]
"""

FULL = """
[[price]]
operation = "llm.chat"
model = "gpt-5*"
wallet = "tokens"
per_request = "0.1"
minimum = "0.01"
maximum = 5_000
rounding = "half_even"
valid_from = 2026-11-01T00:00:00Z
valid_to = 2026-12-01T01:00:00.5+01:00
cached_within_input = true
reasoning_within_output = true
rates.input_tokens = { units = "2.50", per = 1_000_000 }
rates.output_tokens = { tiers = [{ up_to = 10, units = 3 }, { units = 2 }], mode = "volume", \
tiers_by = ["input_tokens"] }
rates.images = { units = { "1024x1024" = 20, "*" = "8.5" }, by = "size" }
rates.thumbs = { units = 1, within = "images" }
maximum_meters = { output_tokens = 4_096 }
source = "by hand"

[[override]]
account = "acme"
operation = "image.generate"
per_request = 15
"""


class TestReading:
    def test_every_field(self):
        assert parse(FULL) == PriceFile(
            prices=(
                Price(
                    operation="llm.chat",
                    model="gpt-5*",
                    wallet="tokens",
                    per_request=D("0.1"),
                    minimum=D("0.01"),
                    maximum=D(5000),
                    rounding="half_even",
                    valid_from=1_793_491_200_000_000,
                    valid_to=1_796_083_200_500_000,
                    cached_within_input=True,
                    reasoning_within_output=True,
                    rates={
                        "input_tokens": Rate(units=D("2.50"), per=1_000_000),
                        "output_tokens": Rate(
                            tiers=(Tier(D(3), 10), Tier(D(2))),
                            mode="volume",
                            tiers_by=("input_tokens",),
                        ),
                        "images": Rate(units={"1024x1024": D(20), "*": D("8.5")}, by="size"),
                        "thumbs": Rate(units=D(1), within="images"),
                    },
                    maximum_meters={"output_tokens": 4096},
                    source="by hand",
                ),
            ),
            overrides={"acme": (Price("image.generate", per_request=D(15)),)},
        )

    def test_the_template(self):
        file = parse(template())
        weights = {price.operation: price.per_request for price in file.prices[:3]}
        assert weights == {"text.generate": 1, "image.generate": 20, "video.generate": 100}
        assert file.prices[3].model == "gpt-5*"
        assert file.digest == new_version(1, file.prices).digest

    def test_an_empty_file_is_an_empty_book(self):
        assert parse("") == PriceFile()

    @pytest.mark.parametrize(
        ("text", "place", "problem"),
        [
            ("a = = 1", "tillroll.toml:1:5", "not TOML: Invalid value"),
            ("x = [", "tillroll.toml", "not TOML"),
            ("x = " + "[" * 5000, "tillroll.toml", "nested too deeply"),
            ("wallet = 1", "tillroll.toml", "unknown table or field 'wallet'"),
            ("[price]\noperation = 'x'", "tillroll.toml", "must be written [[price]]"),
            ("[[price]]\n", "tillroll.toml:1: [[price]] 1", "the table has no field `operation`"),
            (
                "\n# first\n[[price]]\noperation = 'x'\nweight = 1",
                "tillroll.toml:3: [[price]] 1 (x)",
                "the table has the unknown field `weight`; known fields: operation, model,",
            ),
            (
                "[[price]]\noperation = 'x'\nwallet = 'No Grant'",
                "tillroll.toml:1: [[price]] 1 (x)",
                "wallet: No Grant is not 1 to 64 of a-z",
            ),
            (
                "[[price]]\noperation = 'x'\nvalid_to = 9999-12-31T23:59:59-14:00",
                "tillroll.toml:1: [[price]] 1 (x)",
                "valid_to is not within the years 1 to 9999",
            ),
            (
                "[[price]]\noperation = 'x'\nvalid_from = 0001-01-01T00:00:00+14:00",
                "tillroll.toml:1: [[price]] 1 (x)",
                "valid_from is not within the years 1 to 9999",
            ),
            (
                "[[price]]\noperation = 'x'\nper_request = 0.5",
                "tillroll.toml:1: [[price]] 1 (x)",
                'per_request = 0.5: floats are not exact, write the decimal in quotes: "0.5"',
            ),
            (
                "[[price]]\noperation = 'x'\nmodel = 'm'\nrates.a.tiers = [{units = 1e3}]",
                "tillroll.toml:1: [[price]] 1 (x/m)",
                'units = 1e3: floats are not exact, write the decimal in quotes: "1e3"',
            ),
            (
                "[[price]]\noperation = 'x'\nminimum = nan",
                "tillroll.toml:1: [[price]] 1 (x)",
                "minimum = nan: floats are not exact, write the decimal in quotes: a number",
            ),
            (
                "[[price]]\noperation = 'a'\n\n[[override]]\noperation = 'x'",
                "tillroll.toml:4: [[override]] 1 (x)",
                "the table has no field `account`",
            ),
            (
                "[[override]]\naccount = ''\noperation = 'x'",
                "tillroll.toml:1: [[override]] 1 (x@)",
                "account: a name has 1 to 255 characters",
            ),
            (
                "[[price]]\noperation = 'x'\nrates.a.unit = 1",
                "tillroll.toml:1: [[price]] 1 (x)",
                "unknown field `unit` at `rates[...]`; known fields: units, per,",
            ),
            (
                "[[price]]\noperation = 'x'\nrates.a.tiers = [{ upto = 1 }]",
                "tillroll.toml:1: [[price]] 1 (x)",
                "unknown field `upto` at `rates[...].tiers[0]`; known fields: units, up_to",
            ),
            (
                "[[price]]\noperation = 'x'\nrounding = 'down'",
                "tillroll.toml:1: [[price]] 1 (x)",
                "Invalid enum value 'down' at `rounding`; one of up, half_even, carry",
            ),
            (
                "[[price]]\noperation = 'x'\nvalid_from = 2026-01-01T00:00:00",
                "tillroll.toml:1: [[price]] 1 (x)",
                "Expected `datetime` with a timezone component at `valid_from`",
            ),
            (
                "[[price]]\noperation = 'x'\nper_request = -1\nminimum = 2\nmaximum = 1\n",
                "tillroll.toml:1: [[price]] 1 (x)",
                "per_request: -1 is negative; a price is 0 or more; minimum 2 is more than",
            ),
            (
                "".join(f"[[price]]\noperation = '{name}'\n" for name in "xyx"),
                "tillroll.toml:5: [[price]] 3 (x)",
                "x is priced twice; the other is tillroll.toml:1: [[price]] 1 (x)",
            ),
            (
                "price = [{operation = 1}]",
                "tillroll.toml: [[price]] 1",
                "Expected `str`, got `int`",
            ),
            ("price = [1]", "tillroll.toml: [[price]] 1", "Expected `object`, got `int`"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place(self, text: str, place: str, problem: str):
        with pytest.raises(InvalidPriceBook) as caught:
            parse(text)
        assert caught.value.place == place
        assert problem in caught.value.problem
        assert str(caught.value) == f"{place}: {caught.value.problem}"
        assert isinstance(caught.value, InvalidInput)

    def test_a_header_in_a_string_does_not_give_wrong_lines(self):
        text = "[[price]]\noperation = 'a'\nsource = '''\n[[price]]\n'''\nweight = 1"
        with pytest.raises(InvalidPriceBook) as caught:
            parse(text)
        assert caught.value.place == "tillroll.toml: [[price]] 1 (a)"

    def test_the_number_of_rules_is_bounded(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(book, "RULES_MAX", 2)
        with pytest.raises(InvalidPriceBook, match="at most 2 rules, not 3"):
            parse("".join(f"[[price]]\noperation = 'x{i}'\n" for i in range(3)))

    def test_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = tmp_path / "prices.toml"
        with pytest.raises(InvalidPriceBook, match=r"prices\.toml: No such file"):
            load(path)
        path.write_text(template(), encoding="utf-8")
        assert load(path) == parse(template())
        path.write_bytes(b"# \xff")
        with pytest.raises(InvalidPriceBook, match="not UTF-8 at byte 2"):
            load(str(path))
        path.write_text("a = = 1", encoding="utf-8")
        with pytest.raises(InvalidPriceBook) as caught:
            load(path)
        assert caught.value.place == f"{path}:1:5"
        monkeypatch.setattr(book, "BYTES_MAX", 3)
        with pytest.raises(InvalidPriceBook, match="larger than 3 bytes"):
            load(path)


# --- writing ---------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12).map(
    lambda name: name.replace("*", "+")
)
amounts = st.decimals(min_value=0, max_value=10**9, places=6)
rates = st.one_of(
    st.builds(Rate, units=amounts, per=st.integers(1, 10**9)),
    st.builds(Rate, units=st.dictionaries(names, amounts, min_size=1, max_size=9), by=names),
    st.lists(st.integers(1, 10**6), max_size=3, unique=True).map(
        lambda ends: Rate(
            mode="volume", tiers=tuple(Tier(D(end or 7), end) for end in [*sorted(ends), None])
        )
    ),
)
prices = st.builds(
    Price,
    operation=names,
    model=st.none() | names,
    wallet=st.sampled_from(["credits", "gpu", "a.b-c_9"]),
    per_request=amounts,
    rates=st.dictionaries(names, rates, max_size=3),
    minimum=st.none() | amounts,
    rounding=st.sampled_from(["up", "half_even"]),
    valid_from=st.none() | st.integers(0, 10**15),
    source=st.text(max_size=40).filter(lambda text: max(text, default=" ") < "\ud800"),
)


class TestWriting:
    @settings(max_examples=80, deadline=None)
    @given(st.lists(prices, max_size=3, unique_by=lambda p: (p.operation, p.model)), names)
    def test_what_is_written_is_read_back(self, rules: list[Price], account: str):
        assert all(problems_of(price) == [] for price in rules)
        file = parse(dump(rules, {account: rules}))
        assert file.prices == tuple(rules)
        assert file.overrides == ({account: tuple(rules)} if rules else {})

    def test_all_fields_are_read_back(self):
        file = parse(FULL)
        assert parse(dump(file.prices, file.overrides)) == file

    def test_it_reads_well(self):
        text = dump(
            [
                Price("image.generate", per_request=D(20)),
                Price(
                    "llm.chat",
                    model="gpt-5*",
                    minimum=D("0.010"),
                    rates={
                        "input_tokens": Rate(units=D("2.50"), per=1_000_000),
                        "n": Rate(tiers=(Tier(D(12000), 1000), Tier(D(1)))),
                        "images": Rate(units={f"{i}x{i}": D(i) for i in range(1, 10)}, by="size"),
                    },
                ),
            ],
            {"a c": [Price("x", per_request=D("1E+3"))]},
        )
        assert text == (
            '[[price]]\noperation = "image.generate"\nper_request = 20\n\n'
            '[[price]]\noperation = "llm.chat"\nmodel = "gpt-5*"\nminimum = "0.01"\n'
            'rates.input_tokens = { units = "2.5", per = 1_000_000 }\n'
            "rates.n.tiers = [\n  { up_to = 1_000, units = 12_000 },\n  { units = 1 },\n]\n"
            'rates.images.by = "size"\n'
            "rates.images.units = { 1x1 = 1, 2x2 = 2, 3x3 = 3, 4x4 = 4, 5x5 = 5, 6x6 = 6, "
            "7x7 = 7, 8x8 = 8, 9x9 = 9 }\n\n"
            '[[override]]\naccount = "a c"\noperation = "x"\nper_request = 1_000\n'
        )

    def test_nothing_is_written_as_nothing(self):
        assert dump([]) == ""


class TestSchema:
    def test_the_file_is_the_generated_one(self):
        path = Path(tillroll.catalog.__file__).with_name("tillroll.schema.json")
        assert path.read_text(encoding="utf-8") == json.dumps(schema(), indent=2) + "\n"

    def test_every_field_has_a_description(self):
        tables = schema()["$defs"]
        of_prices = {"BookTable", "OverrideTable", "PriceTable", "RateTable", "TierTable"}
        of_products = {"GrantTable", "MoneyTable", *(kind.__name__ for kind in TABLES.values())}
        assert set(tables) == of_prices | of_products
        for table in tables.values():
            assert table["additionalProperties"] is False
            for field, said in table["properties"].items():
                assert said.get("description"), field

    @pytest.mark.parametrize(
        ("text", "valid"),
        [
            (template(), True),
            (FULL, True),
            ("[[price]]\noperation = 'x'\nper_request = 0.5", False),
            ("[[price]]\noperation = 'x'\nweight = 5", False),
            ("[[price]]\noperation = 'x'\nrounding = 'down'", False),
            ("[[override]]\noperation = 'x'", False),
            (SOLD, True),
            ("[pack.x]\nprice = { amount = 1, currency = 'USD' }", False),
            ("[pass.x]\nlasts = '1d'\nfeatures = { hd = 1.5 }", False),
            ("[plan.x]\ngrants = [{ units = 1, weekly = true }]", False),
        ],
    )
    def test_it_accepts_and_refuses_what_the_reader_does(self, text: str, *, valid: bool):
        jsonschema = pytest.importorskip("jsonschema")
        document = json.loads(json.dumps(tomllib.loads(text), default=lambda d: d.isoformat()))
        validator = jsonschema.Draft202012Validator(schema())
        validator.check_schema(schema())
        assert validator.is_valid(document) is valid


# --- products --------------------------------------------------------------------------------


class TestProducts:
    def test_what_is_written_is_read_back(self):
        read = parse(SOLD)
        assert parse(dump(read.prices, read.overrides, read.products)) == read
        assert read.products.plans["pro"].trial == 131_400_500_000
        assert read.products.plans["pro"].grants[0].called == "credits"

    @pytest.mark.parametrize(
        ("plan", "grant", "found"),
        [
            ("", "", ("month", 1)),
            ('every = "day"', "", ("day", 1)),
            ('every = "day"\ncount = 2', "", ("day", 2)),
            ('every = "day"\ncount = 2', ', every = "day"', ("day", 1)),
            ('every = "day"\ncount = 2', ", count = 3", ("day", 3)),
            ('every = "year"', ', every = "month"', ("month", 1)),
            ('every = "year"', ', every = "month", count = 6', ("month", 6)),
        ],
    )
    def test_a_grant_comes_with_the_plans_period_unless_it_has_its_own(self, plan, grant, found):
        read = parse(f"[plan.x]\ngrants = [{{ units = 5{grant} }}]\n{plan}")
        [brought] = read.products.plans["x"].grants
        assert (brought.every, brought.count) == found
        again = parse(dump(read.prices, read.overrides, read.products))
        assert again == read

    def test_a_version_keeps_them_and_its_digest(self):
        read = parse(SOLD)
        version = new_version(1, [IMAGE], products=read.products)
        assert decode_version(encode_version(version)) == version
        plain = new_version(1, [IMAGE])
        assert version.digest != plain.digest == content_digest([IMAGE], {})
        assert b"products" not in encode_version(plain)
        assert PriceBook({1: version}, 1).products == read.products
        assert not PriceBook().products

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("\n[pack.x]\nunits = 1.5", "tillroll.toml:2: [pack.x]: units = 1.5: floats"),
            ("[pack.x]\nunit = 1", "known fields: units, price, expires"),
            ("[pack.x]\nunits = 0", "units must be greater than 0"),
            ("[pack.x]\nunits = '0.0000000000001'", "more than 12 decimals"),
            ("[pack.x]\nunits = 1\nexpires = '3q'", "expires is not a span"),
            ("[pack.x]\nunits = 1\nwallet = 'No'", "wallet must be"),
            ("[pack.x]\nunits = 1\npriority = 5000", "priority must be"),
            ("[pack.x]\nunits = 1\napplies_to = ['']", "applies_to must have 1 to 255"),
            ('[pack.x]\nunits = 1\nstripe_price = "a\\u0007"', "no control characters"),
            ("[pack.x]\nunits = 1\nprice = { amounts = 1 }", "known fields: amount, currency"),
            ("[pack.x]\nunits = 1\nprice = { amount = -1, currency = 'USD' }", "0 or more"),
            ("[pack.x]\nunits = 1\nprice = { amount = 1, currency = 'usd' }", "three letters"),
            ("[pack.X]\nunits = 1", "a name has 1 to 64"),
            ("[pack.x]\nunits = 1\n[coupon.x]\nunits = 1", "3: [coupon.x]: there is a pack of"),
            ("[[pack]]\nunits = 1", "[pack.NAME], with one bracket"),
            ("[packs.x]\nunits = 1", "unknown table or field 'packs'; known are [[price]]"),
            ("[plan.x]\ngrants = [{ unit = 1 }]", "known fields: units, name, every"),
            ("[plan.x]\ngrants = [{ units = 1 }, { units = 2 }]", "two grants are called"),
            ("[plan.x]\ngrants = [{ units = 1, name = 'A' }]", "grants[1].name: a name has"),
            ("[plan.x]\ngrants = [{ units = 1, rollover_min = 2 }]", "must not exceed"),
            ("[plan.x]\ngrants = [{ units = 1, count = 0 }]", "count must be from 1"),
            ("[plan.x]\ngrants = [" + "{ units = 1 }," * 21 + "]", "grants: at most 20"),
            ("[plan.x]\nevery = 'moon'", "one of day, week, month, year"),
            ("[plan.x]\nfeatures = { hd = true }", "there is no [feature.hd]"),
            ("[feature.a]\n[pass.x]\nlasts = '1d'\nfeatures = { a = 1 }", "must be true or"),
            ("[feature.a]\nkind = 'limit'\ndefault = -1", "must be a whole number, 0 or more"),
            ("[feature.a]\nkind = 'limit'\ndefault = true", "must be a whole number, 0 or more"),
            ("[feature.a]\nkind = 'config'\ndefault = 1", "default must be a text"),
            ("[feature.a]\nkind = 'config'\ndefault = ''", "default must have 1 to 255"),
            ("[feature.a]\nkind = 'switch'", "one of boolean, limit, config"),
            ("[pass.x]", "the table has no field `lasts`"),
            ("[coupon.x]\nunits = 1\nmost = 0", "most must be from 1"),
            ("[alert.x]", "give exactly one of below"),
            ("[alert.x]\nbelow = 1\npercent = 1", "give exactly one of below"),
            ("[alert.x]\nbelow = 0", "below must be greater than 0"),
            ("[alert.x]\npercent = 101", "a percentage is from 1 to 100"),
            ("[alert.x]\nbudget = [0]", "a percentage is from 1 to 100"),
            ("[alert.x]\ndays_left = 0", "days are from 1"),
            ("[alert.x]\nexpiring = [5000]", "days are from 1"),
        ],
    )
    def test_what_makes_no_sense_is_told_with_its_place(self, text: str, said: str):
        with pytest.raises(InvalidPriceBook) as caught:
            parse(text)
        assert said in str(caught.value)

    def test_the_scale_of_the_ledger_counts(self):
        products = parse("[pack.x]\nunits = '0.25'\n[coupon.y]\nunits = 2_000_000_000").products
        check_products(products)
        for scale, said in ((1, "more than 1 decimals"), (9, "smallest unit")):
            with pytest.raises(InvalidInput, match=said):
                check_products(products, scale)

    def test_there_are_not_too_many(self):
        many = {f"c{n}": Coupon(D(1)) for n in range(1_001)}
        with pytest.raises(InvalidInput, match="at most 1,000 of a kind"):
            check_products(Products(coupons=many))

    def test_the_better_value_counts(self):
        assert best([1, 5, 3]) == 5
        assert best([5, UNLIMITED]) == UNLIMITED
        assert best([False, True]) is True
        assert best(["small", "large"]) == "large"
        assert best([]) is None

    def test_changes_are_told_by_product(self):
        old = new_version(1, [IMAGE], products=parse(SOLD).products)
        text = SOLD.replace("1_000", "2_000").replace('"hd" = true', "hd = false")
        text = text.replace("[pass.day]", "[pass.night]").replace('"7d"', '"8d"')
        plan = diff(old, [IMAGE], {}, parse(text).products)
        assert plan.lines() == [
            *(("~", f"plan.pro {change}") for change in (
                ('grants.credits units = 1_000, every = "year", count = 2, rollover_min = 1, '
                'rollover_max = "200.5" -> units = 2_000, every = "year", count = 2, '
                'rollover_min = 1, rollover_max = "200.5"'),
                "features.hd true -> false",
            )),
            (
                "+",
                ('pass.night: lasts 1m30s, features.model "large", '
                'price { amount = "1.5", currency = "EUR" }'),
            ),
            ("~", "coupon.welcome expires 7d -> 8d"),
            (
                "-",
                ('pass.day: lasts 1m30s, features.model "large", '
                'price { amount = "1.5", currency = "EUR" }'),
            ),
            (" ", "1 added, 2 changed, 1 removed"),
        ]  # fmt: skip
        assert not plan.empty
        assert not plan.reordered
        assert plan.to_dict()["products"][0]["section"] == "plan"

    def test_who_holds_what_is_told_what_they_gain_and_lose(self):
        old = new_version(1, [], products=parse(SOLD).products)
        text = SOLD.replace('"hd" = true, ', "").replace("units = 500", "units = 600")
        new = parse(text.replace("[pass.day]", "[pass.night]")).products
        held = [
            Holding("pack", "starter", 1, 2),
            Holding("coupon", "welcome", 1, 2),
            Holding("pass", "day", 1, 1),
            Holding("plan", "pro", 1, 1_200),
            Holding("plan", "pro", 7, 1),
        ]
        told = [
            line for effect in effects(held, PriceBook({1: old}, 1), new) for line in effect.lines()
        ]
        assert told == [
            ("!", "pack.starter: 2 accounts hold it on version 1, which stays so; bought again:"),
            ("+", "  gains units 600"),
            ("-", "  loses units 500"),
            (
                "!",
                "pass.day: 1 account holds it on version 1; it is sold no more, what is held stays",
            ),
            (
                "!",
                (
                    "plan.pro: 1,200 accounts hold it on version 1, which stays so; moved to this "
                    "version:"
                ),
            ),
            ("-", "  loses features.hd true"),
        ]
        assert effects(held, PriceBook({1: old}, 1), old.products) == []


# --- plans -----------------------------------------------------------------------------------

IMAGE = Price("image.generate", per_request=D(20))
CHAT = Price("llm.chat", model="gpt-5", rates={"input_tokens": Rate(units=D(5), per=1000)})
VIDEO = Price("video.generate", per_request=D(100))


class TestPlan:
    def test_changes_are_told_field_by_field(self):
        old = new_version(3, [IMAGE, VIDEO], overrides={"acme": [IMAGE]})
        dearer = Price("image.generate", per_request=D(25), minimum=D(1), source="hand")
        plan = diff(old, [dearer, CHAT], {"acme": [IMAGE], "b": [VIDEO]})
        assert plan.lines() == [
            ("~", "image.generate per_request 20 -> 25"),
            ("~", "image.generate minimum + 1"),
            ("~", "image.generate source + hand"),
            ("+", "llm.chat/gpt-5: rates.input_tokens 5 / 1,000"),
            ("+", "video.generate@b: per_request 100"),
            ("-", "video.generate: per_request 100"),
            (" ", "2 added, 1 changed, 1 removed"),
        ]
        assert (plan.old_number, plan.old_digest, plan.empty) == (3, old.digest, False)
        assert (
            plan.new_digest
            == new_version(4, [dearer, CHAT], overrides={"acme": [IMAGE], "b": [VIDEO]}).digest
        )

    def test_every_kind_of_rate_is_told(self):
        tiers = (Tier(D(3), 1000), Tier(D(1)))
        old = Price("x", rates={"n": Rate(tiers=tiers), "i": Rate(units={"a": D(1)}, by="size")})
        new = Price(
            "x",
            rates={
                "n": Rate(tiers=(Tier(D(2), 1000), Tier(D(1)))),
                "i": Rate(units={"a": D(2), "b": D(3)}, by="size", within="n"),
                "v": Rate(tiers=tiers, mode="volume", tiers_by=("n",), per=10),
            },
            wallet="gpu",
            rounding="half_even",
            valid_from=0,
            cached_within_input=True,
            reasoning_within_output=True,
            maximum_meters={"n": 4096},
        )
        added, removed, _ = [text for _, text in diff(new_version(1, [old]), [new]).lines()]
        assert added.split(", ") == [
            "x: rates.n[graduated tier 1] up to 1,000: 2",
            "rates.n[graduated tier 2] 1",
            "rates.i[size a] 2",
            "rates.i[size b] 3",
            "rates.i.within n",
            "rates.v[volume tier 1 of n] up to 1,000: 3 / 10",
            "rates.v[volume tier 2 of n] 1 / 10",
            "wallet gpu",
            "rounding half_even",
            "valid_from 1970-01-01T00:00:00Z",
            "cached_within_input true",
            "reasoning_within_output true",
            "maximum_meters.n 4,096",
        ]
        assert removed.split(", ") == [
            "x: rates.n[graduated tier 1] up to 1,000: 3",
            "rates.n[graduated tier 2] 1",
            "rates.i[size a] 1",
        ]
        half = Price("x", rates={"n": Rate(tiers=tiers)})
        assert diff(new_version(1, [old]), [half]).lines()[0] == ("~", "x rates.i[size a] - 1")

    def test_a_first_book_an_equal_book_and_a_reordered_one(self):
        first = diff(None, [IMAGE])
        assert (first.old_number, [c.sign for c in first.changes]) == (None, ["+"])
        old = new_version(1, [IMAGE, VIDEO])
        assert diff(old, [IMAGE, VIDEO]).lines() == [(" ", "no changes")]
        assert diff(old, [IMAGE, VIDEO]).empty
        moved = diff(old, [VIDEO, IMAGE])
        assert not moved.empty
        assert moved.lines()[0] == ("~", "the order of the rules")

    def test_a_window_that_moves_is_a_change_of_that_rule(self):
        def sale(units: int, start: int | None, end: int | None) -> Price:
            return Price("x", per_request=D(units), valid_from=start, valid_to=end)

        old = new_version(1, [sale(5, 0, 10**6), sale(6, 2 * 10**6, 3 * 10**6)])
        plan = diff(old, [sale(6, 2 * 10**6, 3 * 10**6), sale(5, 0, 2 * 10**6)])
        assert plan.lines()[0] == (
            "~",
            "x valid_to 1970-01-01T00:00:01Z -> 1970-01-01T00:00:02Z",
        )
        assert plan.counts() == {"added": 0, "changed": 1, "removed": 0}

    def test_json(self):
        told = json.loads(json.dumps(diff(new_version(1, [IMAGE]), [IMAGE, CHAT]).to_dict()))
        assert told["counts"] == {"added": 1, "changed": 0, "removed": 0}
        assert told["changes"][0] == {
            "sign": "+",
            "rule": "llm.chat/gpt-5",
            "operation": "llm.chat",
            "model": "gpt-5",
            "account": None,
            "fields": [{"field": "rates.input_tokens", "old": None, "new": "5 / 1,000"}],
        }


class TestImpact:
    USAGE = (
        *[UsageRecord("a", "image.generate", units=D(19)) for _ in range(3)],
        UsageRecord("b", "llm.chat", "gpt-5", {"input_tokens": 2000}, units=D(10)),
        UsageRecord("b", "video.generate", units=D(100)),
        UsageRecord("c", "voice", meters={"seconds": 1}, units=D(0)),
    )

    def test_rows(self):
        old = new_version(1, [IMAGE, CHAT, VIDEO])
        new = new_version(
            2,
            [
                Price("image.generate", per_request=D(25)),
                CHAT,
                Price("voice", rates={"seconds": Rate(units=D("0.5"))}),
            ],
            overrides={"b": [Price("llm.chat", rates={"input_tokens": Rate(units=D("0.001"))})]},
        )
        found = impact(self.USAGE, old, new)
        rows = [
            (
                r.key,
                r.count,
                r.charged,
                r.old,
                r.new,
                r.difference,
                r.newly_unpriced,
                r.newly_priced,
            )
            for r in (*found.operations, *found.accounts, found.total)
        ]
        assert rows == [
            ("video.generate", 1, 100, 100, 0, -100, 1, 0),
            ("image.generate", 3, 57, 60, 75, 15, 0, 0),
            ("llm.chat", 1, 10, 10, 2, -8, 0, 0),
            ("voice", 1, 0, 0, D("0.5"), D("0.5"), 0, 1),
            ("b", 2, 110, 110, 2, -108, 1, 0),
            ("a", 3, 57, 60, 75, 15, 0, 0),
            ("c", 1, 0, 0, D("0.5"), D("0.5"), 0, 1),
            ("total", 6, 167, 170, D("77.5"), D("-92.5"), 1, 1),
        ]
        reason = (
            "operation video.generate has no price in price version 2 "
            "(did you mean image.generate?)"
        )
        assert found.reasons == ((reason, 1),)
        assert found.lines(accounts_max=1) == [
            *found.lines()[:3],
            ("+", "operation voice: 1 request, 0 -> 0.5 units (+0.5)"),
            ("-", "account b: 2 requests, 110 -> 2 units (-108), 1 newly unpriced"),
            (" ", "and 2 more accounts"),
            ("!", f"1 newly unpriced: {reason}"),
            ("-", "total: 6 requests, 170 -> 77.5 units (-92.5), 1 newly unpriced"),
        ]
        told = json.loads(json.dumps(found.to_dict()))
        assert told["total"]["difference"] == "-92.5"
        assert told["reasons"] == [{"reason": reason, "count": 1}]

    def test_without_an_old_version_what_was_charged_stands_for_it(self):
        found = impact(self.USAGE[:3], None, new_version(1, [IMAGE]))
        assert (found.total.old, found.total.new) == (57, 60)

    def test_residuals_are_carried_as_the_ledger_would(self):
        carry = new_version(2, [Price("x", per_request=D("0.4"), rounding="carry")])
        up = new_version(1, [Price("x", per_request=D("0.4"))])
        usage = [UsageRecord(account, "x") for account in "aabaabab"]
        found = impact(usage, up, carry, scale=0)
        assert {row.key: (row.old, row.new) for row in found.accounts} == {"a": (5, 2), "b": (3, 1)}

    def test_malformed_usage_is_counted_as_unpriced(self):
        version = new_version(1, [Price("x", rates={"s": Rate(units=D(1))})])
        usage = [UsageRecord("a", "x", meters={"s": -1}, units=D(1))]
        found = impact(usage, None, version)
        assert found.total.newly_unpriced == 1
        assert "meter s: -1" in found.reasons[0][0]


# --- proposals -------------------------------------------------------------------------------

AT = datetime(2026, 11, 23, tzinfo=UTC)


class TestProposals:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("genai_prices")

    def test_factor_source_and_shape(self):
        plain = propose(["openai:gpt-4o"], at=AT).prices[0]
        found = propose(["openai:gpt-4o"], markup=D("1.3"), units_per_usd=100, at=AT)
        price = found.prices[0]
        assert (price.operation, price.model) == ("llm.chat", "gpt-4o")
        assert price.rates["input_tokens"].units == plain.rates["input_tokens"].units * 130
        assert {"input_tokens", "cached_tokens", "output_tokens"} <= set(price.rates)
        assert price.cached_within_input
        assert price.reasoning_within_output
        assert re.fullmatch(
            r"genai-prices \S+: openai gpt-4o x 1\.3, 100 units per USD", price.source
        )
        assert found.skipped == ()
        assert parse(dump(found.prices)).prices == found.prices

    def test_what_cannot_be_said_exactly_is_skipped_with_the_reason(self):
        found = propose(["no-such-model", "gpt-5*", "groq:whisper-large-v3"], at=AT)
        assert found.prices == ()
        reasons = {skipped.model: skipped.reason for skipped in found.skipped}
        assert "does not know it" in reasons["no-such-model"]
        assert "a pattern may cover models" in reasons["gpt-5*"]
        assert "at least 10 seconds" in reasons["groq:whisper-large-v3"]

    @pytest.mark.parametrize("value", [0, -1, D("NaN"), 1.3, True])
    def test_factors_are_exact_and_positive(self, value: object):
        with pytest.raises(InvalidInput, match="markup"):
            propose(["gpt-4o"], markup=value, at=AT)

    def test_a_day_needs_a_timezone(self):
        with pytest.raises(InvalidInput, match="timezone"):
            propose(["gpt-4o"], at=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the case

    def test_the_package_may_be_missing(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "genai_prices", None)
        with pytest.raises(PricesPackageMissing, match=r'pip install "tillroll\[llm\]"'):
            propose(["gpt-4o"])

    def test_models_of_a_book(self):
        version = new_version(1, [IMAGE, CHAT, Price("llm.embed", model="gpt-5")])
        assert models_in_book(version) == ["gpt-5"]

    def test_proposals_cost_what_the_package_says(self):
        """Price random usage of a sample of all its models both ways."""
        from genai_prices import data, types  # noqa: PLC0415 - an extra

        picks = random.Random(7)  # noqa: S311 - a sample, not a secret
        everything = [(p, m) for p in data.providers for m in p.models]
        compared = 0
        for provider, model in picks.sample(everything, 150):
            found = propose([f"{provider.id}:{model.id}"], at=AT)
            for when in (AT, AT + timedelta(days=400)) if found.prices else ():
                micros = int(when.timestamp()) * 10**6
                meters = _usage(found.prices[-1], picks)
                # The package reads some usage keys in another way when others are absent.
                usage = types.Usage(**{_THEIRS.get(key, key): n for key, n in meters.items()})
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    theirs = vendor_model(provider, model).calc_price(
                        usage, provider, genai_request_timestamp=when
                    )
                held = PriceBook().adding(new_version(1, found.prices))
                ours = price_request(
                    held,
                    "llm.chat",
                    meters,
                    model=found.prices[0].model,
                    account_ref="a",
                    at=micros,
                )
                assert isinstance(ours, Priced), (model.id, ours)
                assert abs(ours.exact - theirs.total_price) < D("1e-20"), (model.id, meters)
                compared += 1
        assert compared > 150


class TestVendorShapes:
    """Shapes of vendor prices that a sample may not contain."""

    @pytest.fixture
    def propose_one(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        data = pytest.importorskip("genai_prices.data")
        from genai_prices import types  # noqa: PLC0415 - an extra

        def propose_one(prices: Any, at: datetime = AT, model_id: str = "m") -> Any:
            if isinstance(prices, dict):
                prices = types.ModelPrice(**prices)
            info = types.ModelInfo(model_id, types.ClauseEquals("elsewhere"), prices=prices)
            provider = types.Provider("me", "Me", "none", models=[info])
            monkeypatch.setattr(data, "providers", [provider])
            return propose([f"me:{model_id}"], at=at)

        propose_one.types = types
        return propose_one

    def test_requests_are_a_weight(self, propose_one: Any):
        price = propose_one({"requests_kcount": D(5)}).prices[0]
        assert (price.per_request, dict(price.rates)) == (D("0.005"), {})
        assert not price.cached_within_input

    def test_parts_without_a_shorthand_say_within(self, propose_one: Any):
        price = propose_one(
            {"input_mtok": D(1), "input_audio_mtok": D(9), "output_reasoning_mtok": D(3)}
        ).prices[0]
        assert price.rates["input_audio_tokens"].within == "input_tokens"
        assert price.rates["reasoning_tokens"].within is None
        assert (price.cached_within_input, price.reasoning_within_output) == (True, False)

    def test_a_known_later_price_becomes_a_rule_of_its_own(self, propose_one: Any):
        types = propose_one.types
        later = types.StartDateConstraint(datetime(2027, 1, 1, tzinfo=UTC).date())
        prices = [
            types.ConditionalPrice(prices=types.ModelPrice(input_mtok=D(1))),
            types.ConditionalPrice(later, prices=types.ModelPrice(input_mtok=D(2))),
        ]
        now, then = propose_one(prices).prices
        assert (now.rates["input_tokens"].units, then.rates["input_tokens"].units) == (1, 2)
        assert (now.valid_from, now.valid_to) == (None, then.valid_from)
        assert (then.valid_from, then.valid_to) == (1_798_761_600_000_000, None)
        assert new_version(1, [now, then]).prices == (now, then)
        only = propose_one(prices, at=AT + timedelta(days=90)).prices
        assert [price.rates["input_tokens"].units for price in only] == [2]

    def test_what_rules_cannot_say_is_skipped(self, propose_one: Any):
        types = propose_one.types

        def tiers(*starts: int) -> Any:
            return types.TieredPrices(D(1), [types.Tier(start, D(2)) for start in starts])

        noon = types.TimeOfDateConstraint(AT.time(), AT.time())
        by_hour = [types.ConditionalPrice(noon, prices=types.ModelPrice(input_mtok=D(1)))]
        shapes = [
            ({}, "no price there"),
            ({"per_moon": D(1)}, "priced by per_moon"),
            ({"output_mtok": tiers(5)}, "tiers by input tokens but no rate"),
            ({"input_mtok": tiers(0)}, "its tiers do not ascend"),
            ({"input_mtok": tiers(5, 5)}, "its tiers do not ascend"),
            ({"input_mtok": D(1), "requests_kcount": tiers(5)}, "tiers for requests"),
            ({"input_mtok": D("1e-30")}, "more than 18 decimal places"),
            (
                {"cache_read_mtok": D(1), "input_audio_mtok": D(1), "cache_audio_read_mtok": D(1)},
                "part of cached_tokens and of input_audio_tokens at once",
            ),
            (by_hour, "depends on the time of day"),
        ]
        for shape, reason in shapes:
            found = propose_one(shape)
            assert found.prices == ()
            assert reason in found.skipped[0].reason

    def test_a_colon_may_belong_to_the_model(self, propose_one: Any):
        found = propose_one({"input_mtok": D(1)}, model_id="llama:8b")
        assert found.prices[0].model == "llama:8b"


_THEIRS = {"cached_tokens": "cache_read_tokens", "reasoning_tokens": "output_reasoning_tokens"}
_INNER = {
    "cached_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}


def vendor_model(provider: Any, model: Any) -> Any:
    return provider.find_model(model.id) or model


def _usage(price: Price, picks: random.Random) -> dict[str, int]:
    """Draw quantities in which every part is within its whole."""
    meters = dict.fromkeys(price.rates, 0)
    for meter in price.rates:
        amount = picks.choice([0, 1, picks.randrange(1000), picks.randrange(300_000)])
        inner = meter
        while inner is not None:
            meters[inner] += amount
            outer = price.rates[inner].within or _INNER.get(inner)
            inner = outer if outer in price.rates else None
    return meters


# --- the pages -------------------------------------------------------------------------------


class TestPages:
    def test_every_name_is_exported_and_exists(self):
        for name in catalog.__all__:
            assert getattr(catalog, name) is not None

    @pytest.mark.parametrize(
        "struct",
        [
            Price,
            Rate,
            Tier,
            PriceVersion,
            book.OverrideTable,
            GrantTable,
            MoneyTable,
            *TABLES.values(),
        ],
    )
    def test_the_reference_has_every_field(self, struct: type[msgspec.Struct]):
        text = REFERENCE.read_text(encoding="utf-8")
        missing = [name for name in struct.__struct_fields__ if f"`{name}`" not in text]
        assert missing == []

    @pytest.mark.parametrize("page", [REFERENCE, CONCEPTS], ids=lambda page: page.name)
    def test_the_toml_of_the_pages_is_a_price_book(self, page: Path):
        blocks = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        assert blocks
        for block in blocks:
            assert parse(block) != PriceFile()
