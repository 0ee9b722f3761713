"""Prompts for zero-shot classification: class names put into templates.

    fill_templates(["pear"], ["a photo of a {}."]) == ["a photo of a pear."]

One syntax for every verb and function: `{}` or `{c}` stands where the class name goes, once or more
often; any other brace stands for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketclip.errors import DataError


def split_template(template: str, where: str = "") -> list[str]:
    """Return the two or more parts of a template between which the class name goes.

    Args:
        template: text with `{}` or `{c}`.
        where: file and line, for the message.

    Raises:
        DataError: it has no place for the class name.
    """
    parts = template.replace("{c}", "{}").split("{}")
    if len(parts) < 2:
        place = f"{where}: " if where else ""
        raise DataError(f"{place}the prompt {template!r} has no {{c}} or {{}} for the class")
    return parts


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the C x T prompts of C names and T templates, name by name.

    A blank name is a name like any other: some published lists have one.

    Raises:
        DataError: no name, no template, or a template without a place for the name.
    """
    if not names or not templates:
        raise DataError("a classifier needs class names and prompts")
    split = [split_template(template) for template in templates]
    # Joined, not replaced: a name may hold braces itself.
    return [name.join(parts) for name in names for parts in split]
