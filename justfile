# The everyday verbs. `just` alone lists them.

default:
    @just --list

# lint and check the formatting
lint:
    ruff check .
    ruff format --check .

# put the sources into their form
format:
    ruff check --fix .
    ruff format .

# check types, strictly
types:
    mypy

# check the types and the form of the web pages' modules, and test what needs no browser
web:
    npm run check
    npm test

# the quick tests
test *args:
    pytest {{args}}

# all tests; the large models one at a time, since each takes up to 12 GB
test-all *args:
    pytest {{args}}
    pytest -n 1 -m slow {{args}}

# show that the base install works without torch, in an environment of its own; `lowest`: on the
# lowest versions that it accepts
base-install *args:
    bash tests/base_install.sh {{args}}

# time models beside their peer
bench *args:
    python benchmarks/encode.py {{args}}

# build the documentation's site into site/; warnings are errors
docs:
    mkdocs build --strict

# show the documentation at http://127.0.0.1:8000, built again when a page changes
docs-serve:
    mkdocs serve
