"""Prompts for zero-shot classification: class names put into templates.

    fill_templates(["pear"], ["a photo of a {}."]) == ["a photo of a pear."]

All commands and functions use the same syntax: `{}` or `{c}` marks the position of the class name,
one or more times; other braces are literal.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketclip.errors import DataError


def split_template(template: str, where: str = "") -> list[str]:
    """Split a template at the positions of the class name.

    Args:
        template: text with `{}` or `{c}`.
        where: file and line, for the message.

    Returns:
        Two or more parts; joining them with the class name gives the prompt.

    Raises:
        DataError: the template has no position for the class name.
    """
    parts = template.replace("{c}", "{}").split("{}")
    if len(parts) < 2:
        prefix = f"{where}: " if where else ""
        raise DataError(f"{prefix}the prompt {template!r} has no {{c}} or {{}} for the class")
    return parts


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the C x T prompts of C names and T templates, grouped by name.

    A blank name is valid: some published lists have one.

    Raises:
        DataError: there is no name or no template, or a template lacks a position for the name.
    """
    if not names or not templates:
        raise DataError("a classifier needs class names and prompts")
    split = [split_template(template) for template in templates]
    # Joined instead of replaced, because a name may contain braces.
    return [name.join(parts) for name in names for parts in split]
