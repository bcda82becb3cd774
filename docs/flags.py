"""Write the tables of flags in docs/*.md from what `--help` knows: `python docs/flags.py`, or `--check` to compare.

Two lines mark the place of a table; the name of a subcommand may follow the program:

    <!-- flags: src/dataset/array_images.py invert -->
    <!-- end of flags -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

DOCS = Path(__file__).resolve().parent
SRC = DOCS.parent / "src"
sys.path.insert(0, str(SRC))

from common import ArgumentParser, UserError, run_program  # noqa: E402

_MARKED = re.compile(r"(<!-- flags: (.+?) -->\n).*?(<!-- end of flags -->)", re.DOTALL)
_DEFAULT = re.compile(r"\s*\(default: ([^()]*)\)$")
_SHARED = "src/main.py"  # other programs share flags with it


class Row(NamedTuple):
    """A row of a table."""

    flag: str  # the long form
    name: str  # all forms, with the value
    default: str
    help: str


def main() -> int:
    parser = ArgumentParser(description="Writes the tables of flags in docs/*.md from --help.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is not up to date")
    check = parser.parse_args().check
    pages = {page: page.read_text() for page in sorted(DOCS.glob("*.md"))}
    commands = list(find_commands())
    _check_markers([match[2] for text in pages.values() for match in _MARKED.finditer(text)], commands)
    tables = make_tables(commands, _find_link(pages))
    updated = {page: _MARKED.sub(lambda match: match[1] + tables[match[2]] + match[3], pages[page]) for page in pages}
    outdated = [page for page in pages if updated[page] != pages[page]]
    if check and outdated:
        raise UserError(f"{', '.join(page.name for page in outdated)}: not up to date, run python docs/flags.py")
    for page in outdated:
        page.write_text(updated[page])
    return 0


def find_commands() -> Iterator[str]:
    """Yield the path of each program, relative to the repository, once for each of its subcommands."""
    for path in sorted([*SRC.glob("*.py"), *SRC.glob("dataset/*.py")]):
        if "    run_program(main" not in path.read_text():
            continue
        program = path.relative_to(SRC.parent).as_posix()
        nested = [action for action in _read_actions(program) if isinstance(action.choices, dict)]
        yield from [f"{program} {name}" for action in nested for name in action.choices] or [program]


def _check_markers(marked: list[str], commands: list[str]) -> None:
    for command, count in Counter(marked).items():
        if command not in commands:
            raise UserError(f"docs: there is no program {command}, whose flags a page has")
        if count > 1:
            raise UserError(f"docs: {count} places have the flags of {command}, keep one")
    if missing := [command for command in commands if command not in marked]:
        raise UserError(f"docs: no page has the flags of {', '.join(missing)}")


def _find_link(pages: dict[Path, str]) -> str:
    """Return the link to the heading above the table of the shared flags."""
    marker = f"<!-- flags: {_SHARED} -->"
    page = next(page for page, text in pages.items() if marker in text)
    heading = re.findall(r"^#+ (.+)", pages[page].partition(marker)[0], re.MULTILINE)[-1]
    return f"{page.name}#{re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')}"


def make_tables(commands: list[str], link: str) -> dict[str, str]:
    """Return a Markdown table for each command; flags that equal those of `src/main.py` are only listed."""
    shared = set(_read_rows(_SHARED))
    rows = {command: _read_rows(command) for command in commands}
    return {name: _make_table(name, rows[name], shared if name != _SHARED else set(), link) for name in commands}


def _make_table(command: str, rows: list[Row], shared: set[Row], link: str) -> str:
    lines = [f"`{Path(command).name}`:", ""] if " " in command else []
    lines += ["| flag | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| {row.name} | {row.default} | {row.help} |" for row in rows if row not in shared]
    if same := [f"`{row.flag}`" for row in rows if row in shared]:
        lines += ["", f"With the same meaning as for [`main.py`]({link}): {', '.join(same)}."]
    return "\n".join(lines) + "\n"


def _read_rows(command: str) -> list[Row]:
    return [_read_row(action) for action in _read_actions(command) if action.dest != "help"]


def _read_row(action: argparse.Action) -> Row:
    text = " ".join((action.help % vars(action)).split())
    default = _read_default(action, text)
    text = _DEFAULT.sub("", text)
    if action.choices:
        text = f"{', '.join(f'`{choice}`' for choice in action.choices)}: {text}"
    value = "" if action.choices or action.nargs == 0 else action.metavar + " ..." * (action.nargs in ("+", "*"))
    name = f"{', '.join(action.option_strings)} {value}".strip()
    return Row(action.option_strings[-1] if action.option_strings else name, f"`{name}`", default, _escape(text))


def _read_default(action: argparse.Action, text: str) -> str:
    if stated := _DEFAULT.search(text):
        return stated[1] if " " in stated[1] else f"`{stated[1]}`"
    if action.nargs == 0:
        return "off"
    return "required" if action.required and action.nargs != "*" else ""


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _read_actions(command: str) -> list[argparse.Action]:
    """Return the arguments and flags of the parser that answers `--help`."""
    program, *subcommand = command.split()
    parsers: list[argparse.ArgumentParser] = []
    module = import_module(program.removeprefix("src/").removesuffix(".py").replace("/", "."))
    with (
        patch.object(sys, "argv", [program, *subcommand, "--help"]),
        patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser)),
        suppress(SystemExit),
    ):
        module.main()
    return parsers[0]._actions


if __name__ == "__main__":
    run_program(main)
