"""Markdown pages as data: the fenced blocks of a page, its headings, its links.

Only what tests/docs and tests/tidy need of Markdown is understood here. Nothing is run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*)(?P<rest>[^`]*)$")
TITLE = re.compile(r'title="(?P<name>[^"]+)"')
COMMENT = re.compile(r"^ *<!-- *(?P<word>skip|output)(?P<colon>:?)(?P<reason>.*?)-->$")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)(?: \"[^\"]*\")?\)")
DEFINITION = re.compile(r"^\[[^\]]+\]: (?P<target>\S+)")
HEADING = re.compile(r"^(?P<level>#{1,6}) (?P<text>.+)$")
CODE_SPAN = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    path: Path
    line: int  # of the opening fence; the text begins on the next
    language: str
    title: str | None  # the file it is shown as: title="tillroll.toml"
    mark: str | None  # "skip" or "output", from the comment above it
    reason: str  # why it is skipped
    text: str

    def __str__(self) -> str:
        """Say where the block stands, as editors understand it."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Page:
    """One Markdown file, read once."""

    path: Path
    blocks: list[Block]
    prose: list[tuple[int, str]]  # the lines outside the blocks, numbered from 1

    def headings(self) -> Iterator[tuple[int, int, str]]:
        """Give line, level and text of each heading."""
        for number, line in self.prose:
            if found := HEADING.match(line):
                yield number, len(found["level"]), found["text"].strip()

    def anchors(self) -> set[str]:
        """Give the names that a link to a heading of this page may use."""
        return {slug(text) for _, _, text in self.headings()}

    def links(self) -> Iterator[tuple[int, str]]:
        """Give line and target of each link, but for those shown as code."""
        for number, line in self.prose:
            bare = CODE_SPAN.sub("", line)
            for found in (*LINK.finditer(bare), *DEFINITION.finditer(bare)):
                yield number, found["target"]


def slug(heading: str) -> str:
    """Make the anchor of a heading as the site and the code host do: lower case and hyphens."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def read_page(path: Path, text: str | None = None) -> Page:
    """Read a Markdown file, or a text as if it stood there.

    Raises:
        ValueError: A fence is not closed.
    """
    blocks: list[Block] = []
    prose: list[tuple[int, str]] = []
    above = ""  # the last line that was not blank, since the block before
    lines = enumerate((path.read_text("utf-8") if text is None else text).splitlines(), 1)
    for number, line in lines:
        opening = FENCE.match(line)
        if opening is None:
            prose.append((number, line))
            above = line if line.strip() else above
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == opening["ticks"]:
                break
            body.append(inner.removeprefix(opening["indent"]))
        else:
            message = f"{path}:{number}: this block is never closed"
            raise ValueError(message)
        blocks.append(_block(path, number, opening, body, COMMENT.match(above)))
        above = ""
    return Page(path, blocks, prose)


def _block(
    path: Path, number: int, opening: re.Match[str], body: list[str], mark: re.Match[str] | None
) -> Block:
    title = TITLE.search(opening["rest"])
    name = title["name"] if title else None
    if name is None and body and opening["language"] == "toml":
        first = re.fullmatch(r"# (\S+\.toml)", body[0])
        name = first[1] if first else None
    return Block(
        path=path,
        line=number,
        language=opening["language"],
        title=name,
        mark=mark["word"] if mark else None,
        reason=mark["reason"].strip() if mark else "",
        text="".join(f"{line}\n" for line in body),
    )
