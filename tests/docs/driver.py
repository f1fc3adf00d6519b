"""Runs the Python blocks of one page, in a process of their own, in one namespace.

Started by test_docs.py. Reads one JSON object a line: file, line, source. Answers each with one:
what the block printed, and the traceback if it raised. A page may therefore configure Django or
fork without touching another page or the test run.
"""

import contextlib
import doctest
import io
import json
import os
import sys
import traceback
import types


def run(file: str, line: int, source: str, namespace: dict[str, object]) -> None:
    """Execute one block; `>>>` sessions are compared with what they show."""
    if source.lstrip().startswith(">>>"):
        examples = doctest.DocTestParser().get_doctest(source, namespace, file, file, line)
        examples.globs = namespace
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
        if runner.run(examples, clear_globs=False).failed:
            message = "the session differs from what the page shows"
            raise AssertionError(message)
        return
    # Blank lines in front, so that a traceback names the line of the page.
    code = compile("\n" * line + source, file, "exec")
    exec(code, namespace)  # noqa: S102 - that is the whole purpose


def main() -> None:
    """Answer block after block until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a child process prints must not end up among the answers
    page = types.ModuleType("__main__")
    sys.modules["__main__"] = page  # where msgspec and dataclasses look annotations up
    sys.path.insert(0, "")  # `import app` finds the file that the page had us write
    for request in sys.stdin:
        block = json.loads(request)
        printed, failure = io.StringIO(), None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                run(block["file"], block["line"], block["source"], page.__dict__)
            except BaseException:  # noqa: BLE001 - SystemExit too is the page's failure
                failure = traceback.format_exc()
        answers.write(json.dumps({"printed": printed.getvalue(), "failure": failure}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
