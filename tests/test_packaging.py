"""What is declared: the versions that the base install accepts, and the names it offers."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

pytest.importorskip("packaging")
from packaging.requirements import Requirement

import pocketclip
from tests.lowest import base_requirements, lowest, toml

ROOT = Path(__file__).parents[1]
MODULES = {m.name for m in pkgutil.iter_modules(pocketclip.__path__) if m.name[0] != "_"}


def test_the_version_is_written_once():
    """Elsewhere it is taken from `_version.py`; the citation, which cannot do that, agrees."""
    assert "version" in toml()["project"]["dynamic"]
    assert toml()["tool"]["hatch"]["version"]["path"] == "src/pocketclip/_version.py"
    citation = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert f"version: {pocketclip.__version__}" in citation
    [date] = [line.partition('"')[2].rstrip('"') for line in citation if "date-released" in line]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {pocketclip.__version__}" not in changelog or date in changelog


def test_the_declared_pythons_are_those_of_the_hosted_workflow():
    classifiers = toml()["project"]["classifiers"]
    declared = [c.rpartition(" ")[2] for c in classifiers if ":: 3." in c]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert f"python: {json.dumps(declared)}" in workflow


def test_what_ci_runs_exists():
    """`.ci/run` takes the test command from the README; `.ci/full` runs the examples."""
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = [line for line in readme.splitlines() if line.endswith(".venv/bin/pytest")]
    assert len(commands) == 1
    assert " && .venv/bin/pytest" in commands[0]
    full = (ROOT / ".ci" / "full").read_text("utf-8")
    [line] = [line for line in full.splitlines() if line.startswith("for name in ")]
    named = line.removeprefix("for name in ").removesuffix("; do").split()
    assert sorted(named) == sorted(p.stem for p in (ROOT / "examples").glob("*.py"))


def test_the_tests_of_the_base_install_exist():
    script = (ROOT / "tests" / "base_install.sh").read_text("utf-8")
    names = [word for word in script.split() if word.endswith(".py") and "$" not in word]
    assert len(names) > 10
    missing = [n for n in names if not any((ROOT / p / n).is_file() for p in (".", "tests"))]
    assert not missing, "moved or renamed: mend tests/base_install.sh"


def test_the_base_install_declares_its_lowest_versions():
    pins = lowest(base_requirements())
    assert {pin.partition("==")[0] for pin in pins} == {
        "numpy", "pillow", "tokenizers", "ftfy", "huggingface_hub", "safetensors", "typer", "rich",
        "onnxruntime", "jinja2", "protobuf",
    }  # fmt: skip
    for pin, one in zip(pins, base_requirements(), strict=True):
        assert one.specifier.contains(pin.partition("==")[2])


def test_a_requirement_without_a_lowest_version_is_refused():
    assert lowest([Requirement("a>=1.2,!=1.3")]) == ["a==1.2"]
    for text in ("a", "a<2", "a!=1"):
        with pytest.raises(ValueError, match="declare the lowest version"):
            lowest([Requirement(text)])


def test_versions_of_typer_that_do_not_work_are_refused():
    """0.12 shows the version for every verb, up to 0.15.3 --help fails with today's click."""
    [typer] = [one for one in base_requirements() if one.name == "typer"]
    for version in ("0.12.0", "0.12.5", "0.13.1", "0.14.0", "0.15.3", "0.17.0", "0.17.3"):
        assert not typer.specifier.contains(version), version
    for version in ("0.15.4", "0.16.0", "0.17.5", "0.18.0", "0.29.2"):
        assert typer.specifier.contains(version), version


def test_every_module_opens_from_the_front_door():
    """In a new process, in which none is imported yet."""
    code = (
        "import pkgutil, pocketclip\n"
        "pocketclip.nn.reparam.fuse(pocketclip.create_model('tiny'))\n"
        "pocketclip.checkpoint.load; pocketclip.tokenizer.Tokenizer; pocketclip.zoo.ZOO\n"
        "from pocketclip.errors import MissingDependencyError\n"
        "for module in pkgutil.iter_modules(pocketclip.__path__):\n"
        "    if module.name[0] != '_':\n"
        "        assert module.name in dir(pocketclip), module.name\n"
        "        try: assert getattr(pocketclip, module.name).__name__.startswith('pocketclip.')\n"
        "        except MissingDependencyError as error: assert 'pip install' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("nothing", "_nothing", "__wrapped__"):
        with pytest.raises(AttributeError, match=name):
            getattr(pocketclip, name)


def test_type_checkers_see_every_name():
    tree = ast.parse(Path(pocketclip.__file__).read_text("utf-8"))
    [block] = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node)
    ]
    seen = {
        alias.asname or alias.name: (node.module, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = {name for name, (home, _) in seen.items() if home == "pocketclip"}
    assert modules == MODULES, "add the module to src/pocketclip/__init__.py"
    assert all(seen[name][1] == name for name in modules)  # `as` makes it public to mypy
    functions = set(pocketclip.__all__) - {"__version__"}
    assert set(seen) - modules == functions
    assert {name: seen[name][0] for name in functions} == pocketclip._HOMES
    assert resources.files("pocketclip").joinpath("py.typed").is_file()


def test_the_lock_of_the_web_pages_has_hashes_and_no_addresses():
    """Whatever registry npm is told to use serves the same bytes, or the build fails."""
    text = (ROOT / "package-lock.json").read_text("utf-8")
    packages = {name: one for name, one in json.loads(text)["packages"].items() if name}
    assert {"node_modules/onnxruntime-web", "node_modules/@huggingface/tokenizers"} <= set(packages)
    assert all(one["integrity"].startswith("sha512-") for one in packages.values())
    assert "resolved" not in text
    assert "registry" not in text
