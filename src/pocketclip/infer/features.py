"""Feature maps and tokens of an image tower, from a model in torch or from a bundle without torch.

    maps = Encoder("bundle/").features("photo.jpg", size=(480, 640))
    maps["stage2"].shape  # (1, 256, 30, 40)

Shapes: B batch, C channels, H W height width, N tokens.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import BundleError, ConfigError, last_line
from pocketclip.feature_maps import TOKENS, check_sides
from pocketclip.infer.backends import onnx_session
from pocketclip.infer.bundle import Bundle

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP
    from pocketclip.preprocess import Preprocess  # late at run time, see `LoadedModel`

Maps = dict[str, NDArray[np.float32]]


class FeatureExtractor:
    """Runs the image tower of a model up to its maps; several threads may use it.

    Args:
        source: a model in torch, or a bundle that was exported with its features.
        threads: CPU threads per call of a bundle.
    """

    def __init__(self, source: CLIP | Bundle, threads: int) -> None:
        self.source, self.threads = source, threads
        self._session: Any = None
        self._lock = threading.Lock()

    def __call__(self, pixels: NDArray[np.float32]) -> Maps:
        """Return the maps (B, C, H', W') by name, and `tokens` (B, N, C).

        Args:
            pixels: preprocessed, (B, 3, H, W), of any size.

        Raises:
            BundleError: the bundle has no features, was changed, or cannot be run.
            ConfigError: not of that shape, or a size that the tower does not take.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
            raise ConfigError(f"pixels are (B, 3, H, W), not {pixels.shape}")
        check_sides(self.source.config.image, pixels.shape[2], pixels.shape[3])
        pixels = np.ascontiguousarray(pixels, np.float32)
        return self._bundle(pixels) if isinstance(self.source, Bundle) else self._torch(pixels)

    def _torch(self, pixels: NDArray[np.float32]) -> Maps:
        import torch

        assert not isinstance(self.source, Bundle)
        tower, weight = self.source.image, self.source.logit_scale
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(weight.device, weight.dtype)
            names = [m.name for m in tower.feature_maps()]
            found = dict(zip(names, tower.features(batch), strict=True))
            found[TOKENS] = tower.tokens(batch)
            return {name: x.float().cpu().numpy() for name, x in found.items()}

    def _bundle(self, pixels: NDArray[np.float32]) -> Maps:
        assert isinstance(self.source, Bundle)
        with self._lock:
            if self._session is None:
                self._session = open_features(self.source, self.threads)
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(None, {"pixels": pixels}), strict=True))
        except Exception as error:  # runtimes raise exceptions of any type
            raise BundleError(
                f"{self.source.folder}: ONNX Runtime cannot compute the features of "
                f"{pixels.shape}: {last_line(error)}"
            ) from error


def open_features(bundle: Bundle, threads: int) -> Any:
    """Return an ONNX Runtime session of a bundle's feature maps.

    Raises:
        BundleError: it has none, was changed, or cannot be loaded.
    """
    if bundle.features is None:
        raise BundleError(
            f"{bundle.folder} was exported without feature maps: export the model again with "
            "`pocketclip export MODEL --features --out DIR`"
        )
    bundle.check("features.")
    bundle.check("image.")  # the graph refers to the tower's weights
    path = bundle.folder / str(bundle.features["file"])
    try:
        return onnx_session(os.fspath(path), threads)
    except Exception as error:  # runtimes raise exceptions of any type
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {last_line(error)}") from error


def prepare_pixels(
    preprocess: Preprocess, images: list[Any], size: tuple[int, int] | None
) -> NDArray[np.float32]:
    """Return pixels (B, 3, H, W): after the evaluation transform, or resized whole to `size`."""
    if size is None:
        return preprocess.batch(images)
    return np.stack([preprocess.whole(image, size) for image in images])
