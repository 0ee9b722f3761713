"""Lists of class names, and which of them a label means.

    match_classes({"0": "row 2", "10": "row 3"}, ClassList(["zero", "ten"], "names.txt"), "set/")

A list that cannot be matched without doubt is refused: a wrong match would go unnoticed.
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
"""What tells labels apart: a whole number, or text."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0{0,18})?")
_POWER = re.compile(r"[+-]?[0-9](\.[0-9]{1,15})?[eE]\+?[0-9]{1,2}")
_ADVICE = "give lines of label<TAB>name"


@dataclass(frozen=True, slots=True)
class ClassList:
    """A file of class names."""

    lines: list[str]
    """Of the file, blank ones too."""
    source: str

    @property
    def has_labels(self) -> bool:
        """Whether its lines are `label<TAB>name`."""
        return any("\t" in line for line in self.lines)

    def names(self, least: Callable[[], int] = lambda: 0) -> list[str]:
        """Return the names, a blank one among them as "".

        Args:
            least: gives how many there are at least. Blank lines at the end of a file are seldom
                names; they are kept as far as this asks for them, and it is only called if there
                are any.

        Raises:
            DataError: all names are blank.
        """
        names = [line.strip() for line in self.lines]
        if not any(names):
            raise DataError(f"{self.source} holds only blank lines")
        last = max(position for position, name in enumerate(names, 1) if name)
        return names if last == len(names) else names[: max(last, least())]


def class_list(options: DataOptions, *places: str) -> ClassList | None:
    """Return the list that the user named, or the first of `places` there is.

    Raises:
        DataError: it is empty, or not UTF-8 text.
        StorageError: it cannot be read.
    """
    path = options.classes_file or next((p for p in places if storage.exists(p)), None)
    return None if path is None else ClassList(read_lines(path), path)


def whole_number(text: str) -> int | None:
    """Return the number that a label is (`7`, `007`, `7.0`, `7e0`), or None."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    if _POWER.fullmatch(text) and float(text).is_integer() and abs(float(text)) < 1e15:
        return int(float(text))
    return None


def class_index(text: str, classes: int, name: str) -> int:
    """Return a class number, counted from 0.

    Raises:
        DataError: it is not a number, or there is no such class; the message begins with `name`.
    """
    label = whole_number(text)
    if label is None:
        raise DataError(f"{name}: the label {text[:40]!r} is not a whole number")
    if not 0 <= label < classes:
        raise DataError(
            f"{name}: the label {label} is out of range: there are {classes} classes, 0 to "
            f"{classes - 1}; is the list of class names whole?"
        )
    return label


def match_classes(
    labels: Mapping[str, str],
    listed: ClassList | None,
    place: str,
    *,
    unused: Sequence[str] = (),
    indices: bool = False,
) -> tuple[list[str], dict[str, int]]:
    """Return the class names for prompts, and the number of each label among them.

    Labels that are all whole numbers are compared as numbers (`03` and `3.0` are 3), others as
    text in Unicode's form NFC; letter case only counts where it tells two names apart.

    A list is one of: `label<TAB>name` lines; the labels themselves; names, as many as there are
    labels, in their order, which is that of the numbers or else of the text. In the first two
    there may be classes that do not occur in the data. Labels that are numbers from 0 on may also
    count the names.

    Args:
        labels: the labels that occur in the data, and where each does, for messages.
        listed: the list; None for none: the labels are the names.
        place: the data, for messages.
        unused: labels of which the data have no sample: folders without images.
        indices: whether numbers always count the names, from 0.

    Raises:
        DataError: the list does not fit, or more than one way to match it could be meant.
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
    named = _among_names(keys, listed)
    return named if named is not None else _in_order(keys, unused, listed, place)


def _keys(labels: Mapping[str, str]) -> dict[str, Key]:
    numbers = {label: whole_number(label) for label in labels}
    whole = {label: number for label, number in numbers.items() if number is not None}
    if len(whole) == len(numbers):
        return dict(whole)
    odd = [label for label in numbers if label not in whole]
    if whole and all(label.lower().lstrip("+-") in ("nan", "inf", "infinity") for label in odd):
        raise DataError(f"{labels[odd[0]]}: the label is {odd[0]}, and the others are numbers")
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
    """Return keys, all numbers or all texts, in their order, each once."""
    numbers = sorted({key for key in keys if isinstance(key, int)})
    return [*numbers, *sorted({key for key in keys if isinstance(key, str)})]


def _check_indices(number: Mapping[str, int], names: Sequence[str], source: str) -> None:
    """Refuse names that are the labels themselves, and stand elsewhere than these say."""
    lookup = _Lookup([_read_key(name, number) for name in names])
    for label, index in number.items():
        there = lookup.of(index)
        if there and index not in there:
            raise DataError(
                f"{source} line {there[0] + 1}: it is in doubt whether the label {label} means "
                f"this line or, counted from 0, line {index + 1}; {_ADVICE}"
            )


class _Lookup:
    """Where labels stand in a list: as they are spelt, or but for letter case."""

    def __init__(self, found: Sequence[Key]) -> None:
        self._exact: dict[Key, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for position, key in enumerate(found):
            self._exact.setdefault(key, []).append(position)
            self._folded.setdefault(str(key).casefold(), []).append(position)

    def of(self, key: Key) -> list[int]:
        """Return the positions of a label: none, one, or several where that is in doubt."""
        return self._exact.get(key) or self._folded.get(str(key).casefold(), [])


def _read_key(text: str, like: Mapping[str, Key] | Mapping[str, int]) -> Key:
    """Return the key of an entry of a list, to be compared with the keys of the data."""
    number = whole_number(text) if isinstance(next(iter(like.values())), int) else None
    return _text(text) if number is None else number


def indexed_names(listed: ClassList, highest: Callable[[], int]) -> list[str]:
    """Return the names of classes that are counted from 0, in that order.

    Args:
        listed: names by line, or `number<TAB>name` lines.
        highest: gives the highest number in the data; only called where a list ends in blank
            lines, which may be names.

    Raises:
        DataError: numbers that are not 0, 1, ...; or all names are blank.
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
    names, found, seen = [], [], set()
    for position, line in enumerate(lines, 1):
        label, tab, name = line.partition("\t")
        key = _read_key(label, keys)
        if not tab or not label.strip() or key in seen:
            what = f"{label.strip()!r} comes twice" if key in seen else "no label<TAB>name"
            raise DataError(f"{listed.source} line {position}: {what}")
        seen.add(key)
        found.append(key)
        names.append(name.strip())
    number = {}
    lookup = _Lookup(found)
    for label, key in keys.items():
        there = lookup.of(key)
        if len(there) != 1:
            what = "more than one name" if there else "no name"
            raise DataError(
                f"{labels[label]}: {listed.source} has {what} for the class "
                f"{escape_surrogates(label)!r}"
            )
        number[label] = there[0]
    _check_distinct(keys, number, listed)
    return names, number


def _among_names(
    keys: Mapping[str, Key], listed: ClassList
) -> tuple[list[str], dict[str, int]] | None:
    """Match labels that stand in the list themselves; None if one does not."""
    names = listed.names()
    lookup = _Lookup([_read_key(name, keys) for name in names])
    number = {}
    for label, key in keys.items():
        there = lookup.of(key)
        if not there:
            return None
        if len(there) > 1:
            raise DataError(
                f"{listed.source} line {there[1] + 1}: {names[there[1]]!r} comes twice, and "
                f"{escape_surrogates(label)!r} could be either; {_ADVICE}"
            )
        number[label] = there[0]
    _check_distinct(keys, number, listed)
    return names, number


def _check_distinct(keys: Mapping[str, Key], number: Mapping[str, int], listed: ClassList) -> None:
    """Refuse two labels that differ (in letter case) and have one line."""
    taken: dict[int, tuple[Key, str]] = {}
    for label, position in number.items():
        key, other = taken.setdefault(position, (keys[label], label))
        if key != keys[label]:
            raise DataError(
                f"{listed.source} line {position + 1} would be the name of "
                f"{escape_surrogates(other)!r} and of {escape_surrogates(label)!r}; {_ADVICE}"
            )


def _in_order(
    keys: Mapping[str, Key], unused: Sequence[str], listed: ClassList, place: str
) -> tuple[list[str], dict[str, int]]:
    """Match names that stand in the order of the labels."""
    source = listed.source
    ordered = _sorted(list(keys.values()))
    every = _sorted(list(_keys(dict.fromkeys([*keys, *unused], place)).values()))
    if type(every[0]) is not type(ordered[0]):  # `unused` is of another kind
        every = ordered
    names = listed.names(lambda: len(ordered))
    if len(names) == len(every):
        ordered = every
    counts = isinstance(ordered[0], int)
    if len(names) != len(ordered) or (counts and int(ordered[0]) < 0):
        if counts and ordered[0] == 0 and int(ordered[-1]) < len(names):
            return names, {label: int(key) for label, key in keys.items()}
        doubt = f", numbers from {ordered[0]} to {ordered[-1]}" if counts else ""
        raise DataError(
            f"{source} has {len(names)} class names, and {place} has {len(ordered)} classes{doubt}"
            f": one name per line, in the order of the sorted labels, or label<TAB>name"
        )
    _check_order(ordered, names, source)
    number = {key: position for position, key in enumerate(ordered)}
    return names, {label: number[key] for label, key in keys.items()}


def _check_order(ordered: Sequence[Key], names: Sequence[str], source: str) -> None:
    """Refuse names whose order could be another one than that of the labels."""
    texts = [key for key in ordered if isinstance(key, str)]  # numbers are in their own order
    for text, natural in zip(texts, sorted(texts, key=_natural), strict=True):
        if text != natural:
            raise DataError(
                f"{source}: it is in doubt whether its first names are in the order of the text of "
                f"the labels ({text!r} before {natural!r}) or of the numbers in them; {_ADVICE}"
            )
    lookup = _Lookup(ordered)
    like = {str(key): key for key in ordered}
    for position, name in enumerate(names):
        there = lookup.of(_read_key(name, like))
        if there and position not in there:
            raise DataError(
                f"{source} line {position + 1}: {name!r} stands where the name of "
                f"{str(ordered[position])!r} should: give the names in the order of the sorted "
                "labels, or label<TAB>name"
            )


def _natural(text: str) -> list[str | tuple[int, str]]:
    """Return what sorts `class2` before `class10`, in the digits of any script."""
    parts: list[str | tuple[int, str]] = []
    for at, part in enumerate(re.split(r"(\d+)", text)):
        if at % 2:
            digits = "".join(str(unicodedata.decimal(digit)) for digit in part).lstrip("0")
            parts.append((len(digits), digits))
        else:
            parts.append(part)
    return parts
