"""The documentation: every link leads somewhere, and every file and module that it names exists."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from importlib import util
from pathlib import Path

import pytest
import typer

from pocketclip.cli.main import build
from pocketclip.serve import Limits

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    key=lambda page: page.relative_to(ROOT),
)
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
HISTORY = {"docs/internals/decisions.md"}  # names what was there when a decision was made
KEYS = {"docs/reference/formats.md"}  # whose dotted names are keys of JSON
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
REPOSITORY_PATH = re.compile(r"\b(?:src|tests|benchmarks|examples|docs|scripts)/[\w./-]*\w")
MODULE = re.compile(r"\bpocketclip(?:\.(?!md\b)[a-z_][a-z0-9_]*)+")


@functools.cache
def prose(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@functools.cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    found = set()
    for line in prose(page).splitlines():
        if line.startswith("#"):
            title = line.lstrip("#").strip()
            if explicit := re.search(r"\{ *#([\w-]+)[^}]*\}$", title):
                found.add(explicit[1])
            plain = re.sub(r"[`*]", "", title).lower()
            found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert file.is_relative_to(ROOT), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_pages_of_the_site_link_within_it(page):
    """`mkdocs build --strict` refuses the other links, and this needs no mkdocs."""
    if not page.is_relative_to(ROOT / "docs"):
        return
    for target in LINK.findall(prose(page)):
        if "://" not in target and not target.startswith("#"):
            file = (page.parent / target.partition("#")[0]).resolve()
            assert file.is_relative_to(ROOT / "docs"), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_files_that_a_page_names_exist(page):
    if str(page.relative_to(ROOT)) in HISTORY:
        return
    for path in REPOSITORY_PATH.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_modules_that_a_page_names_exist(page):
    """The last name may be a class, function or constant: then the file must define it."""
    if str(page.relative_to(ROOT)) in HISTORY | KEYS:
        return
    for name in MODULE.findall(page.read_text(encoding="utf-8")):
        assert _defined(name), f"{page.name} names {name}"


def _defined(name: str) -> bool:
    parts = name.split(".")
    path = ROOT / "src"
    for i, part in enumerate(parts):
        if (path / part).is_dir():
            path = path / part
        elif (path / f"{part}.py").is_file():
            rest = parts[i + 1 :]
            return _names(path / f"{part}.py", rest)
        else:
            return _names(path / "__init__.py", parts[i:])
    return (path / "__init__.py").is_file()


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _names(file: Path, names: list[str]) -> bool:
    text = _text(file)
    return not names or re.search(rf"\b{re.escape(names[0])}\b", text) is not None


def test_every_page_stands_in_the_navigation():
    if not util.find_spec("yaml"):
        pytest.skip("needs pyyaml")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    in_navigation = set(re.findall(r"[\w/-]+\.md", text[text.index("\nnav:") :]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert pages == in_navigation


COMMANDS = [
    (page, line.strip())
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith("pocketclip ")
]


def test_commands_have_the_options_that_pages_give_them():
    """No command is run: each must name a verb, and options that the verb has."""
    app = typer.main.get_command(build())
    assert len(COMMANDS) > 50
    for page, line in COMMANDS:
        verb, *words = shlex.split(line, comments=True)[1:]
        if verb.startswith("-"):
            continue
        assert verb in app.commands, f"{page.name}: {line}"
        known = {flag for one in app.commands[verb].params for flag in one.opts}
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("-") and flag != "-":
                assert flag in known | {"--help"}, f"{page.name}: {line}"


def _messages() -> str:
    """Return the texts in the package's code, one a line, with `{}` for what is filled in."""
    texts = []
    for path in ROOT.glob("src/pocketclip/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(map(_part, node.values)))
    return "\n".join(texts)


def _part(node):
    if isinstance(node, ast.Constant):
        return node.value
    return "pip install '{}'" if "how_to_install" in ast.unparse(node) else "{}"


def test_messages_that_the_faq_quotes_are_those_of_the_code():
    """Quotes in the questions, where three dots stand for what a message fills in."""
    messages = _messages()
    questions = re.findall(
        r"^\*\*(.+?)\*\*", (ROOT / "docs/faq.md").read_text("utf-8"), re.M | re.S
    )
    quotes = [quote for text in questions for quote in re.findall(r'"(.+?)"', text, re.S)]
    assert len(quotes) >= 7
    for quote in quotes:
        for part in " ".join(quote.split()).split("..."):
            assert part.strip(" :") in messages, quote


def test_the_systemd_unit_starts_what_there_is():
    text = (ROOT / "examples/serve/pocketclip-serve.service").read_text("utf-8")
    [command] = re.findall(r"^ExecStart=/opt/pocketclip/bin/pocketclip (.*)", text, re.M)
    verb, *words = shlex.split(command)
    known = {flag for one in typer.main.get_command(build()).commands[verb].params
             for flag in one.opts}  # fmt: skip
    assert {word for word in words if word.startswith("-")} <= known
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)", text, re.M)
    assert int(stop) > Limits().drain
