"""Write the pages of the reference that are made from the code.

    python scripts/make_reference.py           # write them
    python scripts/make_reference.py --check   # exit with 1 if one differs from what stands there

| page | made from |
|---|---|
| `docs/reference/cli.md` | the help of the verbs |
| `docs/reference/recipes.md` | the fields of the train and reinforce recipes |
| `docs/reference/formats.md` | the JSON schemas in `docs/reference/schemas` |
| `docs/reference/http.md` | the OpenAPI documents of the server |
| `docs/reference/api/*.md` | the public names of the rooms, which mkdocstrings describes |

`tests/test_reference.py` runs the check.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from reference import api, commands, formats, http, recipes

ROOT = Path(__file__).parents[1]
NOTICE = "<!-- Made by scripts/make_reference.py from the code: change it there. -->\n\n"


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its path in the repository."""
    importlib.import_module("pocketclip")  # fails early, and names what is missing
    made = {
        "docs/reference/cli.md": commands.page(),
        "docs/reference/recipes.md": recipes.page(),
        "docs/reference/formats.md": formats.page(),
        "docs/reference/http.md": http.page(),
        **{f"docs/reference/api/{name}": text for name, text in api.pages().items()},
    }
    return {path: NOTICE + text.rstrip() + "\n" for path, text in made.items()}


def stale(root: Path = ROOT) -> list[str]:
    """Return the paths of generated pages that differ from what stands in `root`."""
    made = pages()
    odd = [
        path
        for path, text in made.items()
        if not (root / path).is_file() or (root / path).read_text("utf-8") != text
    ]
    left = {
        str(file.relative_to(root)) for file in root.glob("docs/reference/api/*.md")
    } - made.keys()
    return sorted([*odd, *left])


def write(root: Path = ROOT) -> None:
    """Write every generated page, and remove those that are no longer made."""
    made = pages()
    for path, text in made.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, "utf-8")
    for file in root.glob("docs/reference/api/*.md"):
        if str(file.relative_to(root)) not in made:
            file.unlink()


def main(arguments: list[str] | None = None) -> int:
    """Write or check the pages; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated pages of the reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page differs")
    if parser.parse_args(arguments).check:
        odd = stale()
        for path in odd:
            print(f"{path} differs from the code: run python scripts/make_reference.py")
        return int(bool(odd))
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
