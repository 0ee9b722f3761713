"""Where in a photograph a model finds a text.

    found = pocketclip.explain("photo.jpg", ["a dog", "a ball"], model="mobileclip2-s0")
    found[0].peak  # (x, y) in pixels of the photograph
    found.save("where.png")

Shapes: H W height and width of the photograph, h w of the model's map.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.attribution.picture import SIDE, draw, enlarge
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.devices import has_torch
from pocketclip.errors import ConfigError, MissingDependencyError, how_to_install
from pocketclip.images import open_image
from pocketclip.storage import is_remote
from pocketclip.storage.local import write_whole

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.infer.open_model import Reporter
    from pocketclip.types import Embeddings

MAX_TEXTS = 24
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of the pictures that can be written."""
BACKGROUND = (
    *("a photo", "a picture", "an image", "a drawing", "background"),
    *("texture", "a pattern", "things", "nothing", "a place"),
)
"""Texts that fit anything: what is found for a text is relative to them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundText:
    """Where one text is found."""

    text: str
    similarity: float
    """Cosine of the embeddings of the photograph, as the model sees it, and the text."""
    background: float
    """The mean similarity of the photograph to `BACKGROUND`. A text that is not more similar is not
    in the picture, and its map means little."""
    grid: NDArray[np.float32]
    """(h, w), 0 to 1: how much each position raises the score of the text. Grids of two texts
    cannot be compared: each has its own scale."""
    box: tuple[float, float, float, float]
    """What the model sees: left, top, right and bottom in pixels of the photograph."""
    size: tuple[int, int]
    """Width and height of the photograph."""

    @property
    def is_found(self) -> bool:
        """Whether the text fits better than texts that fit anything."""
        return self.similarity > self.background

    @property
    def map(self) -> NDArray[np.float32]:
        """The grid in the photograph's pixels, (H, W), 0 to 1; NaN outside of the box."""
        width, height = self.size
        left, top = (
            min(round(edge), n - 1) for edge, n in zip(self.box[:2], self.size, strict=True)
        )
        right, bottom = max(round(self.box[2]), left + 1), max(round(self.box[3]), top + 1)
        out = np.full((height, width), np.nan, np.float32)
        fine = enlarge(self.grid, (right - left, bottom - top))
        out[top:bottom, left:right] = fine.clip(0, 1)
        return out

    @property
    def peak(self) -> tuple[float, float]:
        """The hottest point: x and y in pixels of the photograph."""
        height, width = self.grid.shape
        fine = enlarge(self.grid, (8 * width, 8 * height))
        row, column = np.unravel_index(int(fine.argmax()), fine.shape)
        left, top, right, bottom = self.box
        x, y = (float(column) + 0.5) / fine.shape[1], (float(row) + 0.5) / fine.shape[0]
        return left + x * (right - left), top + y * (bottom - top)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation(Sequence[FoundText]):
    """Where the texts are found, in their order."""

    photo: Image.Image
    """Upright."""
    found: tuple[FoundText, ...]
    model: str
    """Its name."""

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: Any) -> Any:
        """Return the result of a text."""
        return self.found[index]

    def __iter__(self) -> Iterator[FoundText]:
        return iter(self.found)

    @property
    def map(self) -> NDArray[np.float32]:
        """The map (H, W) of the first text, see `FoundText.map`."""
        return self.found[0].map

    @property
    def peak(self) -> tuple[float, float]:
        """The hottest point of the first text, see `FoundText.peak`."""
        return self.found[0].peak

    def picture(self, *, side: int = SIDE, alpha: float = 0.7) -> Image.Image:
        """Return the photograph and, beside it, one panel per text.

        Args:
            side: the longer side of a panel, in pixels.
            alpha: how much the hottest places hide the photograph, 0 to 1.

        Raises:
            ConfigError: an argument is out of range.
        """
        check_drawing(side, alpha)
        panels = [
            (f.text, f"similarity {f.similarity:.3f}; any text {f.background:.3f}", f.grid)
            for f in self.found
        ]
        return draw(self.photo, panels, self.found[0].box, side=side, alpha=alpha)

    def save(self, path: str | os.PathLike[str], *, side: int = SIDE, alpha: float = 0.7) -> None:
        """Write the picture; the arguments are those of `picture`.

        Raises:
            ConfigError: an ending other than `SUFFIXES`, or an argument out of range.
            OSError: the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            raise ConfigError(f"{path}: give a file that ends in {', '.join(SUFFIXES)}")
        image = self.picture(side=side, alpha=alpha)
        options: dict[str, Any] = {} if suffix == ".png" else {"quality": 90}
        with write_whole(path) as temporary:
            image.save(temporary, {"jpg": "jpeg"}.get(suffix[1:], suffix[1:]), **options)

    def facts(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        first = self.found[0]
        return {
            "model": self.model,
            "width": first.size[0],
            "height": first.size[1],
            "seen": [round(edge, 1) for edge in first.box],
            "texts": [
                {
                    "text": f.text,
                    "similarity": f.similarity,
                    "background": f.background,
                    "peak": [round(value, 1) for value in f.peak],
                    "grid": [[float(f"{value:.5g}") for value in row] for row in f.grid],
                }
                for f in self.found
            ],
        }


def explain(
    photo: Any,
    texts: str | Sequence[str],
    model: str | os.PathLike[str] | Encoder = "mobileclip2-s0",
    *,
    model_name: str | None = None,
    device: str = "auto",
    offline: bool = False,
    revision: str | None = None,
    reporter: Reporter = None,
) -> Explanation:
    """Return where in a photograph the model finds each text. It needs torch.

    A text's map is relative to texts that fit anything (`BACKGROUND`) and, with several texts,
    also to the others: it shows what speaks for this text rather than for them. The model sees the
    middle square of the photograph, as in classification and search.

    Args:
        photo: a path, bytes, a PIL image or an array.
        texts: what to look for, such as "a dog"; at most `MAX_TEXTS`.
        model: an argument of `pocketclip.load`, or an `Encoder` of a model in torch.
        model_name: the zoo name of a weight file that does not name its model itself.
        device: as in `pocketclip.load`, as are the others.
        offline: take hub files from the local cache only.
        revision: of a repository on the hub.
        reporter: receives remarks.

    Raises:
        ConfigError: no text, an empty or repeated one, too many, a photograph that is not on this
            machine, or a bundle, which has no gradients.
        ImageError: the photograph cannot be opened.
        MissingDependencyError: torch is not installed.
        PocketclipError: the model cannot be loaded.
    """
    texts = check_texts([texts] if isinstance(texts, str) else texts)
    if not has_torch():
        raise MissingDependencyError(
            f"explaining needs torch, for gradients: {how_to_install('train')}"
        )
    from pocketclip.infer.encoder import Encoder, load

    if isinstance(photo, str) and is_remote(photo):
        raise ConfigError(f"{photo}: a photograph on this machine is needed; download it first")
    image = open_image(photo)
    if isinstance(model, Encoder):
        encoder, bundle = model, None if model.bundle is None else str(model.bundle.folder)
    else:
        source = resolve_model(model, revision=revision)
        bundle = source.text if source.kind == "bundle" else None
    if bundle is not None:
        raise ConfigError(
            f"{bundle} is a bundle, which computes no gradients: give the checkpoint or the name "
            "of the model that it was made of"
        )
    if not isinstance(model, Encoder):
        encoder = load(source, model_name, offline=offline, device=device, reporter=reporter)
    return explain_image(encoder, image, texts)


def explain_image(encoder: Encoder, image: Image.Image, texts: Sequence[str]) -> Explanation:
    """Return where an encoder in torch finds each text; see `explain`."""
    from pocketclip.attribution.heat import heat

    pixels = encoder.preprocess(image)
    unit = encoder.encode_pixels(pixels[None])[0]
    embeddings = encoder.encode_text([*texts, *BACKGROUND])
    wanted, others = embeddings[: len(texts)], embeddings[len(texts) :]
    common = float(unit @ others.mean(0))
    grids = heat(encoder.model, pixels, wanted - _baselines(wanted, others))
    found = tuple(
        FoundText(
            text=text, similarity=float(unit @ row), background=common, grid=grid,
            box=encoder.preprocess.seen(image.size), size=image.size,
        )
        for text, row, grid in zip(texts, wanted, grids, strict=True)
    )  # fmt: skip
    return Explanation(photo=image, found=found, model=encoder.config.name)


def check_drawing(side: int, alpha: float) -> None:
    """Check the arguments of `Explanation.picture`.

    Raises:
        ConfigError: one is out of range.
    """
    if not 64 <= side <= 2048:
        raise ConfigError(f"the photograph's side in the picture is 64 to 2048 pixels, not {side}")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is 0 to 1, not {alpha}")


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts without spaces around them.

    Raises:
        ConfigError: see `explain`.
    """
    stripped = [text.strip() for text in texts]
    if not stripped:
        raise ConfigError('there is no text: say what to look for, such as "a dog" (--text)')
    if not all(stripped):
        raise ConfigError('a text is empty: say what to look for, such as "a dog"')
    if len(stripped) > MAX_TEXTS:
        raise ConfigError(f"{len(stripped)} texts are too many for one picture: give {MAX_TEXTS}")
    doubled = [text for text, count in Counter(stripped).items() if count > 1]
    if doubled:
        raise ConfigError(f"the text {doubled[0]!r} is given twice")
    return stripped


def _baselines(wanted: Embeddings, background: Embeddings) -> Embeddings:
    """Return what each text (T, D) is compared with: the mean of background and other texts."""
    common = background.mean(0, keepdims=True)
    if len(wanted) == 1:
        return common
    others = (wanted.sum(0, keepdims=True) - wanted) / (len(wanted) - 1)
    return (others + common) / 2
