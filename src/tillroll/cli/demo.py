"""The demonstration: a real trace through the whole path, then one charge explained."""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

import tillroll
from tillroll.cli import replay, scenario, views
from tillroll.cli import terminal as c

TRACE = "azure_llm_code_2023.csv"
CREDIT = (
    "Trace: AzureLLMInferenceTrace_code 2023, Azure Public Dataset, CC-BY 4.0; Patel et al., "
    "Splitwise: Efficient generative LLM inference using phase splitting, ISCA 2024."
)


def trace_file() -> Path:
    """Return the sample trace: inside the installed package, or beside a checkout's source."""
    packed = Path(str(files("tillroll.cli").joinpath(TRACE)))
    checkout = Path(__file__).parents[3] / "examples" / TRACE
    for path in (packed, checkout):
        if path.exists():
            return path
    raise tillroll.NotFound(f"the sample trace {TRACE} is not installed")


def run(common: c.Common) -> int:
    """Replay the sample trace into a temporary ledger and explain one charge."""
    path = trace_file()
    if not common.json:
        c.say(
            "8,819 real requests to a production LLM service, charged by the token: held for "
            "their worst case, settled with the real figures, with retries, duplicates, "
            "time-outs and crashes on the way."
        )
        c.say(CREDIT + "\n", style="dim")
    with tempfile.TemporaryDirectory(prefix="tillroll-") as folder:
        url = f"sqlite:///{folder}/demo.db"
        report = replay.replay(
            path, scenario.Options(), url, "default", own=True, quiet=common.json
        )
        story = None
        if report["example"] is not None:
            with tillroll.open(url) as ledger:
                story = ledger.explain(report["example"])
    if common.json:
        c.print_json({"replay": report, "explain": story, "attribution": CREDIT})
    else:
        replay.show(report)
        c.out.print("\nWhy was this charged? One that timed out on the way:\n")
        views.show_story(story or {})
        c.out.print("\nNext: tillroll init, then see docs/start.md", style="dim")
    return c.OK if report["proof"]["ok"] else c.FAILED
