"""Labels of a plot that do not cover each other: greedy choice, then a few passes of repair.

Boxes are (left, top, right, bottom) in pixels, y downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_RISES = (3.0, 22.0, 40.0, 58.0)  # of a label over or under its line, in pixels
Box = tuple[float, float, float, float]
Segment = tuple[float, float, float, float]  # x, y of both ends

_PASSES = 4
_LABEL, _MARK, _LINE, _LEADER, _DOUBT, _FAR = 1000.0, 120.0, 14.0, 40.0, 50.0, 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere a label may stand."""

    box: Box
    cost: float
    """How much worse than the best place it is, with nothing in the way."""
    leader: Segment | None = None
    """The line from its point, where it stands apart."""
    anchor: tuple[float, float] | None = None
    """The point that it belongs to."""


def around(x: float, y: float, width: float, height: float) -> list[Place]:
    """Return places for a label around a point, from beside it to some way off."""
    places = []
    for ring, reach in enumerate((8.0, 15.0, 26.0, 40.0, 56.0, 74.0)):
        for turn, (dx, dy) in enumerate(_DIRECTIONS):
            across = reach * dx + (width / 2) * _sign(dx)
            down = reach * dy + (height / 2) * _sign(dy)
            cx, cy = x + across, y + down
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            leader = (x, y, *_nearest(box, x, y)) if ring > 1 else None
            places.append(Place(box, 7.0 * ring + 0.4 * turn, leader, (x, y)))
    return places


_DIRECTIONS = (
    (0.7, -0.7), (-0.7, -0.7), (0.7, 0.7), (-0.7, 0.7), (1.0, 0.0), (-1.0, 0.0), (0.0, -1.0),
    (0.0, 1.0), (0.35, -0.95), (-0.35, -0.95), (0.35, 0.95), (-0.35, 0.95),
)  # fmt: skip


def along(left: float, right: float, y: float, width: float, height: float) -> list[Place]:
    """Return places for a label above and below a level line from `left` to `right`."""
    steps = 16
    span = max(0.0, right - left - width)
    places = []
    for above, off in itertools.product((True, False), _RISES):
        top = y - off - height if above else y + off
        for step in range(steps + 1):
            x = left + span * step / steps
            box = (x, top, x + width, top + height)
            edge = box[3] if above else box[1]
            line = (x + width / 2, y, x + width / 2, edge) if off > _RISES[0] else None
            places.append(Place(box, 0.4 * off + 0.5 * step + (not above), line))
    return places


def place(
    candidates: Sequence[Sequence[Place]],
    marks: Sequence[Box],
    lines: Sequence[Segment],
    bounds: Box,
    points: Sequence[tuple[float, float]] = (),
) -> list[Place | None]:
    """Return a place per label, so that no two labels overlap; None where there is no room.

    Args:
        candidates: the places of each label.
        marks: what labels should not cover.
        lines: what labels should rather not cross.
        bounds: where all labels lie.
        points: what a label may be taken to belong to: it should be nearest to its own.
    """
    costs = [
        [_fixed_cost(p, marks, lines, bounds) + _doubt(p, points) for p in options]
        for options in candidates
    ]
    chosen: list[Place | None] = [None] * len(candidates)
    order = sorted(range(len(candidates)), key=lambda i: -min(costs[i], default=0.0))
    for _ in range(_PASSES):
        for i in order:
            others = [p for j, p in enumerate(chosen) if p is not None and j != i]
            best = min(
                range(len(candidates[i])),
                key=lambda k: costs[i][k] + _mutual_cost(candidates[i][k], others),
            )
            chosen[i] = candidates[i][best]
    kept: list[Place | None] = []
    for found in chosen:
        free = found is not None and _inside(found.box, bounds) and not any(
            other is not None and overlap(found.box, other.box) for other in kept
        )  # fmt: skip
        kept.append(found if free else None)
    return kept


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes share more than an edge."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fixed_cost(found: Place, marks: Sequence[Box], lines: Sequence[Segment], bounds: Box) -> float:
    cost = found.cost if _inside(found.box, bounds) else found.cost + 10 * _LABEL
    cost += _MARK * sum(overlap(found.box, mark) for mark in marks)
    cost += _LINE * sum(crosses(line, found.box) for line in lines)
    if found.leader is not None:
        # The leader begins at its own mark, and may not run through another.
        cost += _LEADER * max(0, sum(crosses(found.leader, mark) for mark in marks) - 1)
    return cost


def _doubt(found: Place, points: Sequence[tuple[float, float]]) -> float:
    """Return the cost of standing nearer to the points of others than to one's own."""
    if found.anchor is None:
        return 0.0
    own = _distance(found.box, found.anchor)
    nearer = sum(p != found.anchor and _distance(found.box, p) < own + 3 for p in points)
    return nearer * (_FAR if found.leader else _DOUBT)


def _distance(box: Box, point: tuple[float, float]) -> float:
    return math.dist(point, _nearest(box, *point))


def _mutual_cost(found: Place, others: Sequence[Place]) -> float:
    cost = 0.0
    for other in others:
        cost += _LABEL * overlap(found.box, other.box)
        cost += _LEADER * (other.leader is not None and crosses(other.leader, found.box))
        cost += _LEADER * (found.leader is not None and crosses(found.leader, other.box))
    return cost


def crosses(line: Segment, box: Box) -> bool:
    """Return whether a line passes through a box (Liang and Barsky's clipping)."""
    x, y, dx, dy = line[0], line[1], line[2] - line[0], line[3] - line[1]
    enter, leave = 0.0, 1.0
    for step, room in ((-dx, x - box[0]), (dx, box[2] - x), (-dy, y - box[1]), (dy, box[3] - y)):
        if step == 0:
            if room <= 0:
                return False
        elif step < 0:
            enter = max(enter, room / step)
        else:
            leave = min(leave, room / step)
    return enter < leave


def _inside(box: Box, bounds: Box) -> bool:
    return (
        box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
    )


def _nearest(box: Box, x: float, y: float) -> tuple[float, float]:
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _sign(value: float) -> int:
    return 0 if abs(value) < 0.5 else 1 if value > 0 else -1
