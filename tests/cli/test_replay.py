"""Traces through the whole path: the sample and traces of other shapes, proven each time."""

import json
from decimal import Decimal

import pytest

import tillroll
from tillroll.cli import demo, proof, replay, scenario, traces


def run(path, folder, **options):
    return replay.replay(
        path,
        scenario.Options(**options),
        f"sqlite:///{folder}/ledger.db",
        "default",
        own=True,
        quiet=True,
    )


def test_the_sample_is_charged_to_the_row(tmp_path):
    report = run(demo.trace_file(), tmp_path)
    assert report["requests"] == 8_819
    assert report["proof"]["ok"], report["proof"]
    outcomes = {row["outcome"]: row["requests"] for row in report["outcomes"]}
    assert sum(outcomes.values()) == 8_819
    assert outcomes["charged"] > 7_000
    assert outcomes["refused"] > 0


def test_without_faults_the_sum_is_that_of_the_file(tmp_path):
    report = run(
        demo.trace_file(), tmp_path, credits="100000", retries=0.0, late=0.0, timeouts=0.0,
        crashes=0.0, limit=1_000,
    )  # fmt: skip
    lines = demo.trace_file().read_text().splitlines()[1:1_001]
    tokens = [tuple(map(int, line.split(",")[1:])) for line in lines]
    wanted = sum(Decimal(c) * 5 / 10_000 + Decimal(g) * 15 / 10_000 for c, g in tokens)
    assert Decimal(report["charged"]) == wanted


@pytest.mark.parametrize("seed", [2, 3])
def test_every_fault_at_once(tmp_path, seed):
    report = run(
        demo.trace_file(), tmp_path, retries=0.5, late=0.5, timeouts=0.3, crashes=0.3, limit=800,
        seed=seed, credits="60",
    )  # fmt: skip
    assert report["proof"]["ok"], report["proof"]
    faults = {row["fault"].strip(): row["times"] for row in report["faults"]}
    assert faults["provider time-outs"] > 50
    assert faults["callers that crashed after the hold"] > 50


def test_json_lines_with_other_columns(tmp_path):
    trace = tmp_path / "usage.jsonl"
    rows = [
        {"when": f"2026-01-0{day}T10:00:00Z", "who": f"team-{day % 2}", "id": f"job-{day}",
         "in": 1_000 * day, "out": 10 * day}
        for day in range(1, 8)
    ]  # fmt: skip
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    report = run(
        trace, tmp_path, meters={"input_tokens": "in", "output_tokens": "out"},
        time_column="when", account_column="who", id_column="id", retries=1.0, late=1.0,
        timeouts=0.0, crashes=0.0,
    )  # fmt: skip
    assert report["proof"]["ok"], report["proof"]
    assert report["accounts"] == 2
    assert Decimal(report["charged"]) == sum(
        Decimal(row["in"]) / 2_000 + Decimal(row["out"]) * 3 / 2_000 for row in rows
    )
    with tillroll.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert ledger.explain("job-3")["charged"] == "1.545"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "no column is known to be a meter"),
        ("TIMESTAMP,ContextTokens\nyesterday,5\n", "not a time"),
        ("TIMESTAMP,ContextTokens\n2026-01-01 00:00:00,many\n", "row 1"),
        ("", "no rows"),
        ("ContextTokens,GeneratedTokens\n5\n", "row 1: fewer values"),
        ('ContextTokens,GeneratedTokens\n"5,7\n6,8\n', "row 1: fewer values"),
        ("ContextTokens,GeneratedTokens\n1,5,7\n", "row 1: more values"),
        ("a,b\n1,2,3\n", "more values"),
        ("ContextTokens\nNaN\n", "row 1: ContextTokens is 'NaN'"),
        ("ContextTokens\n1E+999999999\n", "row 1"),
        ("ContextTokens\n5\n-5\n", "row 2: ContextTokens is '-5'"),
        ("ContextTokens,a,ContextTokens\n5,6,7\n", "bad.csv has two columns 'ContextTokens'"),
        (
            "time,ContextTokens\n0001-01-01T00:00:00+14:00,5\n",
            "row 1: the time must be within the years 1 to 9999",
        ),
        ("ContextTokens\n" + "1" * 200_000 + "\n", "field larger"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, text, says):
    trace = tmp_path / "bad.csv"
    trace.write_text(text)
    with pytest.raises(tillroll.InvalidInput, match=says):
        traces.read(trace, traces.Columns(), accounts=2, limit=None)


def test_a_row_that_repeats_an_id_is_charged_once(tmp_path):
    trace = tmp_path / "twice.csv"
    rows = ["a,1000,zoe", "b,2000,zoe", "a,1000,zoe", "a,1000,kim", "a,1000,zoe"]
    trace.write_text("\n".join(["id,input_tokens,who", *rows]))
    report = run(
        trace, tmp_path, account_column="who", id_column="id", retries=0.0, late=0.0, timeouts=0.0,
        crashes=0.0,
    )  # fmt: skip
    assert report["proof"]["ok"], report["proof"]
    assert (report["requests"], report["repeated_rows"]) == (3, 2)
    assert report["faults"][0]["times"] == 1, "it came late, and was a repeat"
    assert Decimal(report["charged"]) == 2
    trace.write_text("id,input_tokens\na,1\nb,2\na,3\n")
    with pytest.raises(tillroll.InvalidInput, match="row 3: 'a' stands there with other figures"):
        traces.read(trace, traces.Columns(id="id"), accounts=7, limit=None)


def test_lines_before_the_header_that_are_blank_are_none(tmp_path):
    trace = tmp_path / "blank.csv"
    trace.write_text("\n \r\nContextTokens\n5\n\n6\n")
    rows = traces.read(trace, traces.Columns(), accounts=1, limit=None)
    assert [row.meters["input_tokens"] for row in rows] == [5, 6]


def test_a_worst_case_is_a_number(tmp_path):
    with pytest.raises(tillroll.InvalidInput, match="output_tokens must be a plain decimal"):
        run(demo.trace_file(), tmp_path, limit=1, worst_case={"output_tokens": "many"})


def test_an_id_that_cannot_be_is_named_with_its_row(tmp_path):
    trace = tmp_path / "long.csv"
    trace.write_text(f"id,input_tokens\na,1\n{'x' * 256},2\n")
    with pytest.raises(tillroll.InvalidInput, match="row 2: request_id must have 1 to 255"):
        run(trace, tmp_path, id_column="id")


def test_bytes_that_are_no_text_are_said_to_be_none(tmp_path):
    trace = tmp_path / "bad.csv"
    for rows, line in ((b"\xff\n", 2), (b"5\n7\xe2\x82\n9\n", 3)):
        trace.write_bytes(b"ContextTokens\n" + rows)
        with pytest.raises(tillroll.InvalidInput, match=rf"bad\.csv line {line}: not UTF-8"):
            traces.read(trace, traces.Columns(), accounts=2, limit=None)


def test_a_price_file_that_is_no_text_is_said_to_be_none(tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_bytes(b"# prices\n# \xff\n")
    with pytest.raises(tillroll.InvalidInput, match=r"prices\.toml: not UTF-8 at .*, in line 2"):
        run(demo.trace_file(), tmp_path, limit=1, prices=prices)


def test_the_proof_notices_a_wrong_charge(tmp_path):
    """The control: an independent computation that could not fail would prove nothing."""
    report = run(demo.trace_file(), tmp_path, limit=50, timeouts=0.0, crashes=0.0)
    assert report["proof"]["ok"]
    state = scenario.Run(outcomes={1: "charged", 2: "refused"})
    checks, wrong = proof.compare({1: Decimal(5), 2: Decimal(1)}, {1: Decimal(6)}, state)
    assert not checks[0]["ok"]
    assert wrong == [
        "row 1: charged 5, the file says 6",
        "row 2: charged 1 though it was refused",
    ]
