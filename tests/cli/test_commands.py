"""The command line as a program calls it: exit codes, JSON, and what is left behind."""

import contextlib
import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from tillroll.cli.app import run

PRICES = """\
[[price]]
operation = "image.generate"
per_request = 20

[[price]]
operation = "llm.chat"
rates.input_tokens = { units = "0.5", per = 1_000 }
rates.output_tokens = { units = "1.5", per = 1_000 }
maximum_meters = { output_tokens = 1_000 }
"""


class Shell:
    """A folder with a ledger, and the command line run in it as a process of its own."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-c", "from tillroll.cli import main; main()", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *arguments, code=0):
        return json.loads(self.run(*arguments, "--json", code=code))


@pytest.fixture
def shell(tmp_path):
    (tmp_path / "tillroll.toml").write_text(PRICES)
    made = Shell(tmp_path)
    made.run("prices", "apply", "--reason", "first prices")
    made.run("grant", "acme", "1000", "--request-id", "g1", "--reason", "welcome")
    return made


def test_a_charge_its_repeat_and_its_conflict(shell):
    first = shell.json("consume", "acme", "image.generate", "--request-id", "r1")
    again = shell.json("consume", "acme", "image.generate", "--key", "r1")
    assert (first["units"], first["available"], first["replayed"]) == ("20", "980", False)
    assert again == {**first, "replayed": True}
    conflict = shell.json("consume", "acme", "--units", "5", "--key", "r1", code=4)
    assert conflict["error"]["code"] == "idempotency_conflict"
    assert conflict["error"]["written"] == "nothing"


def test_a_refusal_is_exit_3_and_says_what_would_help(shell):
    refused = shell.json("consume", "acme", "--units", "5000", code=3)["error"]
    assert refused["code"] == "insufficient_units"
    assert (refused["needed"], refused["available"]) == ("5000", "1000")
    assert refused["ways_out"][0] == {
        "kind": "top_up",
        "text": "grant 4000 more",
        "units": "4000",
    }
    assert shell.json("consume", "acme", "nothing.known", code=3)["error"]["code"] == "unpriced"


@pytest.mark.parametrize(
    "arguments",
    [
        ("consum", "acme"),
        ("consume",),
        ("consume", "acme", "--units", "1.2345678"),
        ("consume", "acme", "--units", "-5"),
        ("consume", "acme", "--units", "nan"),
        ("consume", "acme", "image.generate", "--meter", "no-equals-sign"),
        ("grant", "acme", "0"),
        ("grant", "acme", "5", "--expires", "yesterday"),
        ("grant", "", "5"),
        ("consume", "acme", "--units", "1", "--metadata", "{"),
        ("statement", "acme", "--limit", "0"),
        ("usage", "--by", "colour"),
        ("recurring", "acme", "p", "5"),
    ],
)
def test_wrong_usage_is_exit_2_and_writes_nothing(shell, arguments):
    before = shell.json("statement", "acme")
    shell.run(*arguments, code=2)
    assert shell.json("statement", "acme") == before


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["consume"], 2, "usage"),
        (["nonsense"], 2, "usage"),
        (["statement", "acme", "--limit", "many"], 2, "usage"),
        (["export", "no/such/folder/file"], 1, "failure"),
        (["consume", "acme", "x", "--units", "1", "--metadata", "[" * 99_999], 2, "invalid_input"),
        (["balance", "\udcff"], 2, "invalid_input"),
        (["bench", "race", "--consumers", "0"], 2, "invalid_input"),
        (["bench", "consume", "--seconds", "nan"], 2, "invalid_input"),
        (["bench", "consume", "--accounts", "0"], 2, "invalid_input"),
    ],
)
def test_every_error_is_json_where_asked(shell, arguments, code, name):
    assert shell.json(*arguments, code=code)["error"]["code"] == name


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_lacks_a_sign_still_carries_it(shell, monkeypatch, encoding):
    shell.run("grant", "日本語 😀", "1")
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    assert "日本語 😀" in shell.json("accounts")
    assert "\\u65e5" in shell.run("accounts")
    assert "\\u65e5" in shell.run("balance", "日本語 😀")


def test_a_reader_that_leaves_early_is_no_traceback(shell):
    shell.run("grant", "acme", "1", "--reason", "x" * 900)
    script = "from tillroll.cli import main; main()"
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written
    left = subprocess.run(
        [sys.executable, "-c", script, "export"],
        cwd=shell.folder,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert left.stderr == b""
    assert left.returncode == 1


def test_a_missing_folder_is_exit_1(shell):
    lost = shell.json("balance", "acme", "--db", "sqlite:///no/such/folder/a.db", code=1)
    assert lost["error"]["written"] == "nothing"


def test_holds_end_by_settle_release_and_doubt(shell):
    shell.run("hold", "acme", "--units", "100", "--key", "h1")
    assert shell.json("settle", "acme", "h1", "--units", "42.5")["units"] == "42.5"
    shell.run("hold", "acme", "--units", "100", "--key", "h2")
    assert shell.json("extend", "acme", "h2", "--expires-in", "2h")["kind"] == "extend"
    assert shell.json("release", "acme", "h2")["held"] == "0"
    shell.run("hold", "acme", "--units", "100", "--key", "h3")
    assert shell.json("in-doubt", "acme", "h3")["kind"] == "in_doubt"
    assert shell.json("resolve", "acme", "h3", "done", "--units", "7")["units"] == "7"
    assert shell.json("settle", "acme", "h3", "--units", "8", code=3)["error"]["code"] == (
        "hold_finalized"
    )
    assert shell.json("balance", "acme")["available"] == "950.5"


def test_refunds_are_previewed_first(shell):
    shell.run("consume", "acme", "image.generate", "--key", "r1")
    preview = shell.json("refund", "acme", "r1", "--units", "5", "--preview")
    assert preview["available"] == "985"
    assert shell.json("balance", "acme")["available"] == "980"
    assert shell.json("refund", "acme", "r1", "--units", "5")["available"] == "985"


def test_governing_an_account(shell):
    shell.run("freeze", "acme", "--reason", "chargeback")
    assert shell.json("consume", "acme", "--units", "1", code=3)["error"]["code"] == (
        "account_frozen"
    )
    shell.run("unfreeze", "acme")
    shell.run("budget", "acme", "daily", "10", "--period", "day", "--match", "member=ann")
    over = shell.json("consume", "acme", "--units", "11", "--tag", "member=ann", code=3)["error"]
    assert (over["code"], over["tightest"]) == ("budget_exceeded", "budget daily")
    shell.run("budget", "acme", "daily", "none")
    shell.run("consume", "acme", "--units", "11", "--tag", "member=ann")
    shell.run("configure", "acme", "--time-zone", "Asia/Tokyo", "--late-usage", "90d")
    shell.run("configure", "acme", code=2)
    now = datetime.now(UTC)
    shell.run("grant", "zoe", "5", "--key", "g2")
    for account, code in (("acme", 0), ("zoe", 2)):
        words = ["hold", account, "--units", "1", "--effective-at", f"{now - timedelta(days=60)}"]
        shell.run(*words, "--key", "late", code=code)
    shell.run("release", "acme", "late")
    shell.run("overdraft", "acme", "50")
    end = f"{now + timedelta(days=1)}"
    shell.run("recurring", "acme", "plan", "5", "--anchor", "2026-01-31", "--ends-at", end)
    assert shell.json("balance", "acme")["available"] == "994"
    shell.run("adjust", "acme", "-4", "--reason", "granted too much")
    shell.run("void", "acme", "g1")
    assert shell.json("balance", "acme")["available"] == "1"  # the plan was burnt first
    shell.run("close", "acme")
    assert shell.json("grant", "acme", "1", code=3)["error"]["code"] == "account_closed"


def test_looking_back(shell):
    shell.run("consume", "acme", "image.generate", "--key", "r1", "--tag", "member=ann")
    shell.run("consume", "acme", "image.generate", "--key", "r1", "--tag", "member=ann")
    story = shell.json("explain", "r1")
    assert story["charged"] == "20"
    assert story["replays"] == 1
    assert story["price"]["arithmetic"][1] == "1 request x 20 = 20"
    assert [row["grant"] for row in story["paid_by"]] == ["g1"]
    rows = shell.json("usage", "--by", "operation", "--by", "tag:member")
    assert rows == [
        {
            "operation": "image.generate",
            "tag:member": "ann",
            "units": "20",
            "refunded": "0",
            "count": 1,
        }
    ]
    page = shell.json("statement", "acme", "--limit", "1")
    assert (len(page["entries"]), page["next"]) == (1, 2)
    assert shell.json("statement", "acme", "--before", "2")["entries"][0]["kind"] == "grant"
    assert shell.json("accounts") == ["acme"]
    assert "no entry of this account" in shell.run("balance", "acmee")
    assert "no entry" not in shell.run("balance", "acme")
    assert "up to 2020-01-01 00:00:00" in shell.run("balance", "acme", "--as-of", "2020-01-01T00Z")
    assert shell.json("verify")["ok"] is True
    assert shell.json("doctor")["ok"] is True
    shell.run("explain", "nobody-knows", code=1)


def test_export_is_csv_and_json_lines(shell):
    shell.run("consume", "acme", "image.generate", "--key", "r1")
    rows = list(csv.DictReader(io.StringIO(shell.run("export"))))
    assert [row["kind"] for row in rows] == ["grant", "consume"]
    assert [row["available"] for row in rows] == ["1000", "980"]
    shell.run("export", "out.jsonl", "--json")
    lines = [json.loads(line) for line in (shell.folder / "out.jsonl").read_text().splitlines()]
    assert [line["units"] for line in lines] == ["1000", "20"]


def test_a_line_of_json_has_values_of_their_own_types(shell):
    shell.run("grant", "acme", "5", "--expires", "2100-01-01")
    meters = ("--meter", "input_tokens=2000", "--meter", "output_tokens=1000")
    shell.run("consume", "acme", "llm.chat", *meters, "--tag", "member=ann", "--key", "r1")
    *_, line = [json.loads(line) for line in shell.run("export", "--json").splitlines()]
    assert line["meters"] == {"input_tokens": 2000, "output_tokens": 1000}
    assert (line["tags"], line["due"]) == ({"member": "ann"}, False)
    assert line["price"] == {"version": 1, "rule": "llm.chat", "exact": "2.5"}
    assert line["postings"][0]["units"] == "2.5"
    *_, row = csv.DictReader(io.StringIO(shell.run("export")))
    assert json.loads(row["postings"]) == line["postings"]
    assert (row["price_version"], row["due"], row["reason"]) == ("1", "", "")


ABOUT = [
    ("balance", "acme"),
    ("statement", "acme"),
    ("usage",),
    ("explain", "r1"),
    ("accounts",),
    ("verify",),
    ("export",),
    ("book-due",),
    ("doctor",),
    ("access", "acme"),
    ("entitlements", "acme"),
    ("quote", "acme", "image.generate"),
    ("refund", "acme", "r1"),
    ("refund", "acme", "r1", "--preview"),
    ("void", "acme", "g1"),
    ("settle", "acme", "h1"),
    ("release", "acme", "h1"),
    ("extend", "acme", "h1", "--expires-in", "5m"),
    ("in-doubt", "acme", "h1"),
    ("resolve", "acme", "h1", "done"),
    ("change-entitlement", "acme", "pro", "--status", "paused"),
    ("end-entitlement", "acme", "pro"),
    ("prices", "plan"),
    ("prices", "list"),
    ("prices", "show"),
    ("keys", "list"),
    ("projects", "list"),
    ("webhooks", "list"),
    ("webhooks", "deliveries"),
    ("jobs", "status"),
    ("payments", "list"),
    ("topup", "show", "acme"),
    ("overage", "show", "acme"),
]


@pytest.mark.parametrize("words", ABOUT, ids=" ".join)
def test_what_is_about_something_there_makes_no_ledger_at_a_wrong_place(tmp_path, words, capsys):
    (tmp_path / "tillroll.toml").write_text(PRICES)
    wrong, other = tmp_path / "credit.db", tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(other)) as shop:
        shop.execute("CREATE TABLE orders (id text)")
    before = other.read_bytes()
    if words == ("prices", "plan"):
        words = (*words, str(tmp_path / "tillroll.toml"))
    for path, says in ((wrong, "there is no such file"), (other, "has no ledger")):
        assert run([*words, "--db", str(path), "--json"]) == 1
        out, _ = capsys.readouterr()
        error = json.loads(out)["error"]
        assert (error["code"], error["written"]) == ("unavailable", "nothing")
        assert says in error["message"]
        assert "tillroll init" in error["message"]
    assert not wrong.exists()
    assert other.read_bytes() == before


def test_an_unknown_account_or_project_is_not_found_to_be_well(shell):
    for words in (("verify", "acmee"), ("verify", "--project", "prod")):
        assert shell.json(*words, code=1)["error"]["code"] == "not_found"
    assert shell.json("verify", "acme")["accounts"] == 1
    (shell.folder / "empty").mkdir()
    empty = Shell(shell.folder / "empty")
    empty.run("init")
    assert empty.json("verify") == {"ok": True, "accounts": 0, "entries": 0, "problems": []}


def test_vendors_prices_of_named_models_need_no_ledger(tmp_path):
    empty = Shell(tmp_path)
    model = "openai:gpt-4o-mini"
    assert "gpt-4o-mini" in empty.run("prices", "plan", "--from", "genai-prices", "--model", model)
    assert list(tmp_path.iterdir()) == []


def test_prices_are_planned_applied_listed_and_shown(shell):
    shell.run("consume", "acme", "image.generate", "--key", "r1")
    book = shell.folder / "tillroll.toml"
    book.write_text(PRICES.replace("per_request = 20", "per_request = 25"))
    plan = shell.json("prices", "plan")
    assert plan["plan"]["changes"]
    assert plan["impact"]["total"]["difference"] == "5"
    assert "~" in shell.run("prices", "plan")
    assert [row["version"] for row in shell.json("prices", "list")] == [1]
    assert shell.json("prices", "apply", "--reason", "dearer", "--author", "ann")["version"] == 2
    assert shell.json("prices", "list")[0]["author"] == "ann"
    assert "per_request = 20" in shell.run("prices", "show", "1")
    assert shell.json("consume", "acme", "image.generate", "--key", "r1")["units"] == "20"
    assert shell.json("consume", "acme", "image.generate", "--key", "r2")["units"] == "25"
    assert shell.json("prices", "schema")["$defs"]


def test_malformed_prices_name_their_place(shell):
    (shell.folder / "tillroll.toml").write_text('[[price]]\noperation = "a"\nper_request = 1.5\n')
    error = shell.json("prices", "plan", code=2)["error"]
    assert "tillroll.toml" in error["message"]
    assert "per_request" in error["message"]
    (shell.folder / "tillroll.toml").write_text("[[price]\n")
    assert (
        "tillroll.toml:1:8"
        in shell.json("prices", "apply", "--reason", "x", code=2)["error"]["message"]
    )
    assert shell.json("prices", "list")[0]["version"] == 1


def test_vendors_prices_are_proposed_and_never_applied(shell):
    proposed = shell.json(
        "prices", "plan", "--from", "genai-prices", "--model", "openai:gpt-4o", "--markup", "1.3"
    )
    assert "openai" in proposed["toml"] or "gpt-4o" in proposed["toml"]
    assert len(shell.json("prices", "list")) == 1


def test_a_locked_quote_caps_the_settle(shell):
    quote = shell.json(
        "quote", "acme", "llm.chat", "--meter", "input_tokens=1000", "--lock-for", "15m"
    )
    assert quote["units"] == "2"
    shell.run(
        "hold", "acme", "llm.chat", "--meter", "input_tokens=1000", "--quote", quote["token"],
        "--key", "q1",
    )  # fmt: skip
    settled = shell.json(
        "settle", "acme", "q1", "--meter", "input_tokens=1000", "--meter", "output_tokens=9000"
    )
    assert settled["units"] == "2"
    forged = quote["token"][:-2] + "xx"
    shell.run("hold", "acme", "llm.chat", "--quote", forged, code=2)


def test_init_leaves_alone_what_is_there(tmp_path):
    shell = Shell(tmp_path)
    assert shell.json("init")["prices_written"] is True
    (tmp_path / "tillroll.toml").write_text(PRICES)
    assert shell.json("init")["prices_written"] is False
    assert (tmp_path / "tillroll.toml").read_text() == PRICES


def test_race_and_completion(shell):
    found = shell.json("bench", "race", "--consumers", "40", "--credits", "10")
    assert found["ok"]
    assert found["tillroll"] == {"granted": 10, "refused": 30, "left": 0}
    for name in ("bash", "zsh", "fish"):
        assert "tillroll" in shell.run("completion", name)


SOLD = """
[pack.starter]
units = 500

[feature.hd]

[feature.old]

[feature.seats]
kind = "limit"

[feature.model]
kind = "config"

[plan.pro]
grants = [{ units = 100 }]
features = { hd = true }

[pass.day]
lasts = "24h"
features = { hd = true }

[coupon.welcome]
units = 5
"""


def test_an_id_too_long_for_the_line_stands_below_it_whole(shell):
    wide = shell.run("statement", "acme")
    assert len(wide.splitlines()) == 2
    long = "order-" + "0123456789" * 9
    shell.run("consume", "acme", "image.generate", "--request-id", long)
    head, charged, below, granted, first = shell.run("statement", "acme").splitlines()
    assert head.split()[-1] == "operation"
    assert charged.split()[-1] == "image.generate"
    assert (below.strip(), first.strip()) == (long, "g1")
    assert "grant" in granted


@pytest.fixture
def shop(shell):
    (shell.folder / "tillroll.toml").write_text(PRICES + SOLD)
    shell.run("catalog", "apply", "--reason", "a shop")
    return shell


def test_a_catalog_is_planned_applied_and_shown(shop):
    same = shop.json("catalog", "plan")
    assert (same["plan"]["empty"], same["affected"]) == (True, [])
    assert shop.json("catalog", "apply", "--reason", "again")["new"] is False
    shown = shop.json("catalog", "show")
    assert (shown["version"], shown["products"]) == (2, 8)
    assert "[plan.pro]" in shown["toml"]
    assert "[plan.pro]" in shop.run("prices", "show")
    assert [one["products"] for one in shop.json("catalog", "list")] == [8, 0]
    shop.run("subscribe", "acme", "pro", "--request-id", "s1")
    (shop.folder / "less.toml").write_text(PRICES + SOLD.replace("units = 100", "units = 80"))
    told = shop.json("catalog", "plan", "less.toml")
    assert told["affected"] == [
        {
            "section": "plan",
            "name": "pro",
            "version": 2,
            "accounts": 1,
            "gained": ["grants.credits units = 80"],
            "lost": ["grants.credits units = 100"],
            "gone": False,
        }
    ]
    assert "plan.pro: 1 account holds it on version 2" in shop.run("catalog", "plan", "less.toml")
    (shop.folder / "none.toml").write_text(PRICES)
    assert "it is sold no more, what is held stays" in shop.run("catalog", "plan", "none.toml")


def test_what_is_bought_may_be_used(shop):
    no = shop.json("access", "acme", "--feature", "hd", code=3)
    assert (no["allowed"], no["reason"]) == (False, "not_entitled")
    said = shop.run("access", "acme", "--feature", "hd", code=3)
    assert said.startswith("not allowed: no entitlement of the account brings 'hd'")
    assert "buy the pass 'day'" in said
    shop.run("buy", "acme", "day", "--request-id", "b1")
    assert "until" in shop.run("access", "acme", "--feature", "hd")
    taken = shop.json("consume", "acme", "image.generate", "--feature", "hd")
    assert taken["feature"] == "hd"
    assert shop.json("hold", "acme", "--units", "1", "--feature", "hd")["feature"] == "hd"
    assert shop.json("buy", "acme", "starter", "--quantity", "2")["units"] == "1000"
    assert shop.json("redeem", "acme", "welcome")["coupon"] == "welcome"
    assert shop.json("redeem", "acme", "welcome", code=3)["error"]["code"] == "coupon_used"
    kinds = [one["kind"] for one in shop.json("entitlements", "acme")]
    assert kinds == ["time_pass", "usage_pack", "usage_pack"]
    assert "usage_pack" in shop.run("entitlements", "acme")
    assert shop.run("entitlements", "nobody") == "nothing\n"
    assert "tightest: credits" in shop.run("access", "acme", "image.generate")


def test_an_entitlement_is_changed_and_ended(shop):
    said = shop.run("subscribe", "acme", "pro")
    assert said.startswith("ok subscription on pro active, 1,100 available")  # what it brings, too
    moved = shop.json("subscribe", "acme", "pro", "--name", "second", "--ends-at", "never")
    assert moved["entitlement"]["name"] == "second"
    paused = shop.run("change-entitlement", "acme", "second", "--status", "paused")
    assert "second on pro paused" in paused
    assert "ended" in shop.run("end-entitlement", "acme", "second")
    given = shop.json(
        *("entitle", "acme", "deal", "--feature", "seats=5", "--feature", "hd"),
        *("--feature", "model=large", "--feature", "old=false", "--lasts", "9d"),
    )
    assert given["entitlement"]["features"] == (
        {"hd": True, "model": "large", "old": False, "seats": 5}
    )
    assert "deal" in shop.run("statement", "acme")
    assert "seats is 5" in shop.run("access", "acme", "--feature", "seats")
    assert "the feature 'deal' is active" in " ".join(
        shop.run("explain", "deal", "--account", "acme").split()
    )
