"""Mutations of what has a structure: values of JSON and YAML, fields of zip archives."""

from __future__ import annotations

import copy
import json
import re

_DEEP = "\0deep"
_RAW = {
    "\0nan": "NaN",
    "\0inf": "-Infinity",
    "\0huge": "1e999",
    "\0digits": "9" * 5000,
    "\0twice": '{"a": 1, "a": 2}',
    "\0half": '"\\ud800"',
    "\0bytes": "\udcff",
    _DEEP: "[" * 100_000 + "]" * 100_000,
    "\0objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "\0cut": "",
}
_ODD = [
    *_RAW, None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 10**300, 0.0, -0.5, 1e-320, 1e308,
    "", " ", "x", "x" * 5000, "0", "nan", "../../etc/passwd", "a\nb", "\u2028", "\x1b[2J",
    [], {}, [[]], [None], {"": None}, [1, 2, 3], ["a"] * 1000,
]  # fmt: skip


def _places(value, found):
    """Collect (holder, key) of every value within `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            _places(inner, found)
    return found


def change(rng, value):
    """Change one to three of the values within a JSON value, or leave them out."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(value, []) if isinstance(value, (dict, list)) else []
        if not places or rng.random() < 0.02:
            return rng.choice(_ODD)
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["", "x", f"{key} ", f"{key}".upper()])] = holder.pop(key)
            case 2:
                other, its = rng.choice(places)
                present = its in other if isinstance(other, dict) else its < len(other)
                holder[key] = copy.deepcopy(other[its]) if present else None
            case 3 if isinstance(holder, list):
                holder *= 2
            case 4 if isinstance(holder[key], (int, float)):
                holder[key] *= rng.choice([-1, 2, 1000, 1e-3, 10**30])
            case _:
                holder[key] = copy.deepcopy(rng.choice(_ODD))
    return value


def dump(value, indent=None):
    """Return JSON with what `json` would not write."""
    text = json.dumps(value, indent=indent)
    for mark, raw in _RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode("utf-8", "surrogateescape")


def change_json(rng, data):
    """Return a JSON text in which values were changed."""
    return dump(change(rng, json.loads(data)), rng.choice([None, 1]))


def change_lines(rng, data):
    """Return JSON lines of which one or two were changed."""
    lines = data.splitlines()
    for _ in range(rng.choice([1, 2])):
        at = rng.randrange(len(lines))
        try:
            lines[at] = dump(change(rng, json.loads(lines[at])))
        except (ValueError, RecursionError):  # what was changed before
            lines[at] = b"" if rng.random() < 0.5 else lines[at] * 2
    return b"\n".join(lines) + b"\n"


_LOCAL = [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]
_CENTRAL = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)]
_END = [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]


def change_zip(rng, data):
    """Return a zip in which a field of a header was changed: sizes, places, methods, sums."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2])):
        mark, fields = rng.choice(
            [(b"PK\3\4", _LOCAL), (b"PK\1\2", _CENTRAL), (b"PK\1\2", _CENTRAL), (b"PK\5\6", _END)]
        )
        places = [found.start() for found in re.finditer(re.escape(mark), out)]
        if not places:
            continue
        place, (offset, width) = rng.choice(places), rng.choice(fields)
        old = int.from_bytes(out[place + offset : place + offset + width], "little")
        new = rng.choice([0, 1, 8, 12, 93, old + 1, old * 2, old ^ 1, 2**31, 2**32 - 1, 0xFFFF])
        out[place + offset : place + offset + width] = (new % (1 << 8 * width)).to_bytes(
            width, "little"
        )
    return bytes(out)
