"""Lists of class names, matched to the labels of a set.

    match_classes({"0": "row 2", "10": "row 3"}, ClassList(["zero", "ten"], "names.txt"), "set/")

An ambiguous list is refused, because a wrong match would go unnoticed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.examples import DataOptions, read_lines
from pocketclip.formats.escaping import escape_surrogates

Key = int | str
"""A label for comparison: an integer or normalised text."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0{0,18})?")
_POWER = re.compile(r"[+-]?[0-9](\.[0-9]{1,15})?[eE]\+?[0-9]{1,2}")
_ADVICE = "use lines of label<TAB>name"


@dataclass(frozen=True, slots=True)
class ClassList:
    """A file of class names."""

    lines: list[str]
    """The lines of the file, blank ones too."""
    source: str

    @property
    def has_labels(self) -> bool:
        """Whether the lines are `label<TAB>name`."""
        return any("\t" in line for line in self.lines)

    def names(self, minimum: Callable[[], int] = lambda: 0) -> list[str]:
        """Return the names; a blank line between others is the name "".

        Args:
            minimum: returns the minimum number of names. Trailing blank lines count as names only
                up to this number; called only if there are any.

        Raises:
            DataError: all lines are blank.
        """
        names = [line.strip() for line in self.lines]
        if not any(names):
            raise DataError(f"{self.source} holds only blank lines")
        last = max(position for position, name in enumerate(names, 1) if name)
        return names if last == len(names) else names[: max(last, minimum())]


def class_list(options: DataOptions, *paths: str) -> ClassList | None:
    """Return the user's list, or the first existing one of `paths`, or None.

    Raises:
        DataError: the list is empty or not UTF-8 text.
        StorageError: the list cannot be read.
    """
    path = options.classes_file or next((p for p in paths if storage.exists(p)), None)
    return None if path is None else ClassList(read_lines(path), path)


def whole_number(text: str) -> int | None:
    """Return a label's value as an integer (`7`, `007`, `7.0`, `7e0`), or None."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    if _POWER.fullmatch(text) and float(text).is_integer() and abs(float(text)) < 1e15:
        return int(float(text))
    return None


def class_index(text: str, classes: int, name: str) -> int:
    """Return a class index, counted from 0.

    Raises:
        DataError: not a whole number, or out of range; the message begins with `name`.
    """
    label = whole_number(text)
    if label is None:
        raise DataError(f"{name}: the label {text[:40]!r} is not a whole number")
    if not 0 <= label < classes:
        raise DataError(
            f"{name}: the label {label} is out of range: there are {classes} classes, 0 to "
            f"{classes - 1}; check that the list of class names is complete"
        )
    return label


def match_classes(
    labels: Mapping[str, str],
    listed: ClassList | None,
    path: str,
    *,
    unused: Sequence[str] = (),
    indices: bool = False,
) -> tuple[list[str], dict[str, int]]:
    """Return the class names for prompts, and each label's index among them.

    If all labels are whole numbers, they are compared as numbers (`03` and `3.0` are 3), otherwise
    as text in Unicode's normal form NFC. Letter case counts only if it distinguishes two names.

    A list has one of three formats: `label<TAB>name` lines; the labels themselves; or one name per
    label, sorted like the labels (numerically or as text). With the first two, the list may have
    classes that do not occur in the set. Labels that are numbers from 0 on may also be indices
    into the names.

    Args:
        labels: the labels that occur in the set, with their position for messages.
        listed: the list; without one, the labels are the names.
        path: the set, for messages.
        unused: labels without examples: folders without images.
        indices: whether numbers are always indices into the names.

    Raises:
        DataError: the list does not match, or matches in more than one way.
    """
    keys = _keys(labels)
    if listed is None:
        return _own_names(keys)
    if listed.has_labels:
        return _by_label(keys, labels, listed)
    numbers = [key for key in keys.values() if isinstance(key, int)]
    if indices and numbers:
        names = listed.names(lambda: max(numbers) + 1)
        where = {label: f"{at} ({listed.source})" for label, at in labels.items()}
        number = {t: class_index(t, len(names), where[t]) for t in keys}
        _check_indices(number, names, listed.source)
        return names, number
    matched = _among_names(keys, listed)
    return matched if matched is not None else _in_order(keys, unused, listed, path)


def _keys(labels: Mapping[str, str]) -> dict[str, Key]:
    numbers = {label: whole_number(label) for label in labels}
    numeric = {label: number for label, number in numbers.items() if number is not None}
    if len(numeric) == len(numbers):
        return dict(numeric)
    texts = [label for label in numbers if label not in numeric]
    not_finite = ("nan", "inf", "infinity")
    if numeric and all(label.lower().lstrip("+-") in not_finite for label in texts):
        raise DataError(f"{labels[texts[0]]}: the label is {texts[0]}, but the others are numbers")
    return {label: _text(label) for label in labels}


def _text(label: str) -> str:
    return unicodedata.normalize("NFC", escape_surrogates(label).strip())


def _own_names(keys: Mapping[str, Key]) -> tuple[list[str], dict[str, int]]:
    first: dict[Key, str] = {}
    for label, key in keys.items():
        first.setdefault(key, key if isinstance(key, str) else label)
    number = {key: position for position, key in enumerate(_sorted(first.keys()))}
    return [first[key] for key in number], {label: number[key] for label, key in keys.items()}


def _sorted(keys: Iterable[Key]) -> list[Key]:
    """Return distinct keys, sorted as numbers or as text."""
    numbers = sorted({key for key in keys if isinstance(key, int)})
    return [*numbers, *sorted({key for key in keys if isinstance(key, str)})]


def _check_indices(number: Mapping[str, int], names: Sequence[str], source: str) -> None:
    """Refuse names that equal labels but have another index."""
    lookup = _Lookup([_read_key(name, number) for name in names])
    for label, index in number.items():
        positions = lookup.of(index)
        if positions and index not in positions:
            raise DataError(
                f"{source} line {positions[0] + 1}: the label {label} may mean this line or, "
                f"counted from 0, line {index + 1}; {_ADVICE}"
            )


class _Lookup:
    """Positions of labels in a list, by exact spelling or else ignoring case."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._exact: dict[Key, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            self._exact.setdefault(key, []).append(position)
            self._folded.setdefault(str(key).casefold(), []).append(position)

    def of(self, key: Key) -> list[int]:
        """Return the positions of a label: none, one, or several if ambiguous."""
        return self._exact.get(key) or self._folded.get(str(key).casefold(), [])


def _read_key(text: str, like: Mapping[str, Key] | Mapping[str, int]) -> Key:
    """Return the key of a list entry, comparable with the keys of the set."""
    number = whole_number(text) if isinstance(next(iter(like.values())), int) else None
    return _text(text) if number is None else number


def indexed_names(listed: ClassList, highest: Callable[[], int]) -> list[str]:
    """Return the names of classes with indices from 0, in that order.

    Args:
        listed: one name per line, or `index<TAB>name` lines.
        highest: returns the highest index in the set; called only if the list ends in blank lines,
            which may be names.

    Raises:
        DataError: indices other than 0, 1, ..., or only blank names.
    """
    if not listed.has_labels:
        return listed.names(lambda: highest() + 1)
    keys = {str(index): index for index in range(len([x for x in listed.lines if x.strip()]))}
    names, number = _by_label(keys, dict.fromkeys(keys, listed.source), listed)
    return [names[number[label]] for label in keys]


def _by_label(
    keys: Mapping[str, Key], labels: Mapping[str, str], listed: ClassList
) -> tuple[list[str], dict[str, int]]:
    lines = list(listed.lines)
    while not lines[-1].strip():
        lines.pop()
    names, listed_keys, seen = [], [], set()
    for position, line in enumerate(lines, 1):
        label, tab, name = line.partition("\t")
        key = _read_key(label, keys)
        if not tab or not label.strip() or key in seen:
            problem = f"{label.strip()!r} occurs twice" if key in seen else "not label<TAB>name"
            raise DataError(f"{listed.source} line {position}: {problem}")
        seen.add(key)
        listed_keys.append(key)
        names.append(name.strip())
    number = {}
    lookup = _Lookup(listed_keys)
    for label, key in keys.items():
        positions = lookup.of(key)
        if len(positions) != 1:
            count = "more than one name" if positions else "no name"
            raise DataError(
                f"{labels[label]}: {listed.source} has {count} for the class "
                f"{escape_surrogates(label)!r}"
            )
        number[label] = positions[0]
    _check_distinct(keys, number, listed)
    return names, number


def _among_names(
    keys: Mapping[str, Key], listed: ClassList
) -> tuple[list[str], dict[str, int]] | None:
    """Match labels that are entries of the list; None if one is not."""
    names = listed.names()
    lookup = _Lookup([_read_key(name, keys) for name in names])
    number = {}
    for label, key in keys.items():
        positions = lookup.of(key)
        if not positions:
            return None
        if len(positions) > 1:
            raise DataError(
                f"{listed.source} line {positions[1] + 1}: {names[positions[1]]!r} occurs twice, "
                f"and {escape_surrogates(label)!r} could be either; {_ADVICE}"
            )
        number[label] = positions[0]
    _check_distinct(keys, number, listed)
    return names, number


def _check_distinct(keys: Mapping[str, Key], number: Mapping[str, int], listed: ClassList) -> None:
    """Refuse two labels that differ only in case and match one line."""
    first: dict[int, tuple[Key, str]] = {}
    for label, position in number.items():
        key, other = first.setdefault(position, (keys[label], label))
        if key != keys[label]:
            raise DataError(
                f"{listed.source} line {position + 1} matches both "
                f"{escape_surrogates(other)!r} and {escape_surrogates(label)!r}; {_ADVICE}"
            )


def _in_order(
    keys: Mapping[str, Key], unused: Sequence[str], listed: ClassList, path: str
) -> tuple[list[str], dict[str, int]]:
    """Match names given in the order of the labels."""
    source = listed.source
    ordered = _sorted(list(keys.values()))
    every = _sorted(list(_keys(dict.fromkeys([*keys, *unused], path)).values()))
    if type(every[0]) is not type(ordered[0]):  # `unused` has labels of another type
        every = ordered
    names = listed.names(lambda: len(ordered))
    if len(names) == len(every):
        ordered = every
    numeric = isinstance(ordered[0], int)
    if len(names) != len(ordered) or (numeric and int(ordered[0]) < 0):
        if numeric and ordered[0] == 0 and int(ordered[-1]) < len(names):
            return names, {label: int(key) for label, key in keys.items()}
        span = f", numbers from {ordered[0]} to {ordered[-1]}" if numeric else ""
        raise DataError(
            f"{source} has {len(names)} class names, and {path} has {len(ordered)} classes{span}"
            f": give one name per line in the order of the sorted labels, or label<TAB>name"
        )
    _check_order(ordered, names, source)
    number = {key: position for position, key in enumerate(ordered)}
    return names, {label: number[key] for label, key in keys.items()}


def _check_order(ordered: Sequence[Key], names: Sequence[str], source: str) -> None:
    """Refuse names whose order may differ from that of the labels."""
    texts = [key for key in ordered if isinstance(key, str)]  # numbers have one order
    for text, natural in zip(texts, sorted(texts, key=_natural), strict=True):
        if text != natural:
            raise DataError(
                f"{source}: its names may be in the order of the labels as text ({text!r} before "
                f"{natural!r}) or of the numbers in them; {_ADVICE}"
            )
    lookup = _Lookup(ordered)
    like = {str(key): key for key in ordered}
    for position, name in enumerate(names):
        positions = lookup.of(_read_key(name, like))
        if positions and position not in positions:
            raise DataError(
                f"{source} line {position + 1}: {name!r} is at the position of "
                f"{str(ordered[position])!r}: give the names in the order of the sorted "
                "labels, or label<TAB>name"
            )


def _natural(text: str) -> list[str | tuple[int, str]]:
    """Return a sort key that puts `class2` before `class10`, for digits of any script."""
    parts: list[str | tuple[int, str]] = []
    for index, run in enumerate(re.split(r"(\d+)", text)):
        if index % 2:
            digits = "".join(str(unicodedata.decimal(digit)) for digit in run).lstrip("0")
            parts.append((len(digits), digits))
        else:
            parts.append(run)
    return parts
