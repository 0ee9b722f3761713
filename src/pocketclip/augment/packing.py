"""The packed format: one augmentation's parameters as a list, as the published sets hold them.

    Packing(parse(config)).unpack([[137, 24, 347, 405], [[9, -0.27], [3, -30.5]]])

A list has one entry per enabled transform, in this order, which is also the order of application:

    resize                   its size, as configured; may be missing
    random_crop              [top, left] in pixels of the source with its border
    random_resized_crop      [top, left, height, width] in pixels of the source
    range_augment            [brightness, contrast, noise_std, noise_seed]
    random_horizontal_flip   true or false (1 or 0, null for false)
    rand_augment             [[operation, magnitude], ...], or null if it was skipped
    auto_augment             the same, with none to two operations; null for none
    trivial_augment_wide     the same, with one
    random_erase             [top, left, height, width] of the result, or null (or a top of -1)

`center_crop`, applied after resize, is deterministic and has no entry. A list may end early: flip,
operations and erasure without an entry are not applied. Whole numbers may be numpy integers or
floats such as 7.0.

The published code has `auto_augment` and `trivial_augment_wide` for training that stores nothing;
where a published generator finds them in its configuration, it leaves them out, with their entries.
So a shorter list without these is read, and they are not applied. `range_augment` is an addition of
this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketclip.augment.params import (
    ENTRIES,
    OPTIONAL,
    OWN,
    MalformedError,
    Params,
    bare,
    plain,
    read_corner,
    shortened,
)
from pocketclip.augment.transforms import RandAugment, Resize, Transform
from pocketclip.errors import AugmentationError, ParseError
from pocketclip.formats.json_text import load_json


class Packing:
    """Packs and unpacks the parameters of one configuration."""

    def __init__(self, transforms: Mapping[str, Transform]) -> None:
        self._entries = [entry for entry in ENTRIES if entry[0] in transforms]
        self._has_window = "random_crop" in transforms
        resize, augment = transforms.get("resize"), transforms.get("rand_augment")
        self._resize = resize if isinstance(resize, Resize) else None
        self._num_ops = augment.num_ops if isinstance(augment, RandAugment) else None

    def pack(self, params: Params) -> list[Any]:
        """Return `params` in plain JSON types.

        Raises:
            AugmentationError: a value is malformed.
            MalformedError: `params` have values for transforms that are not configured.
        """
        checked = self.unpack([getattr(params, field) for _, field, _ in self._entries])
        if checked != params:
            raise MalformedError
        packed = [plain(getattr(checked, field)) for _, field, _ in self._entries]
        return [plain(self._resize.size), *packed] if self._resize is not None else packed

    def unpack(self, packed: Any) -> Params:
        """Return the parameters of a list, or of its JSON text.

        Raises:
            AugmentationError: `packed` is malformed, or does not fit the configuration.
        """
        values: dict[str, Any] = {}
        for (name, field, read), entry in zip(self._entries, self._listed(packed), strict=True):
            try:
                values[field] = read(entry)
            except MalformedError as error:
                raise AugmentationError(f"{name}: {error}; got {shortened(entry)}") from None
        params = Params(**values)
        if self._num_ops and params.ops is not None and len(params.ops) != self._num_ops:
            raise AugmentationError(
                f"rand_augment: expected {self._num_ops} operations; got {shortened(params.ops)}"
            )
        return params

    def _listed(self, packed: Any) -> list[Any]:
        """Return the entries, one for each of `self._entries`."""
        names = ", ".join(name for name, _, _ in self._entries)
        if isinstance(packed, (str, bytes)):
            try:
                packed = load_json(packed)
            except ParseError:
                raise AugmentationError(
                    f"the augmentation is not JSON: {shortened(packed)}"
                ) from None
        entries = bare(packed)
        if not isinstance(entries, list):
            raise AugmentationError(
                f"augmentation must be a list ({names}), not {shortened(packed)}"
            )
        if self._begins_with_resize(entries):
            del entries[0]  # the size, which the configuration has too
        self._insert_own(entries)
        missing = self._entries[len(entries) :]
        if all(name in OPTIONAL for name, _, _ in missing):
            entries += [None] * len(missing)
        if len(entries) != len(self._entries):
            raise AugmentationError(
                f"augmentation must have {len(self._entries)} entries ({names}), "
                f"not {len(entries)}: {shortened(packed)}"
            )
        return entries

    def _begins_with_resize(self, entries: list[Any]) -> bool:
        if self._resize is None:
            return False
        if len(entries) == len(self._entries) + 1:
            return True
        # In a list that ends early only the value tells. No other entry looks like a size, except
        # RandomCrop's: then the next entry must be the one of RandomCrop.
        size = plain(self._resize.size)
        if size == 1 or entries[:1] not in ([size], [[size]]):
            return False
        return isinstance(size, int) or not self._has_window or _is_corner(entries[1:2])

    def _insert_own(self, entries: list[Any]) -> None:
        """Insert null where a published list has no entry."""
        for place, (name, _, _) in enumerate(self._entries):
            if name in OWN and place < len(entries) < len(self._entries):
                entry = entries[place]
                if not isinstance(entry, list) or not all(isinstance(op, list) for op in entry):
                    entries.insert(place, None)


def _is_corner(entries: list[Any]) -> bool:
    try:
        return bool(entries and read_corner(entries[0]))
    except MalformedError:
        return False
