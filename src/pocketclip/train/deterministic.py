"""Deterministic algorithms for a run: the same weights again, bit by bit, also on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from pocketclip.errors import ConfigError, first_line

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""With these, cuBLAS is deterministic (its documentation, section 2.1.4)."""


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool, device: str) -> Iterator[None]:
    """Use deterministic algorithms within the block; torch's settings are restored after it.

    The variable CUBLAS_WORKSPACE_CONFIG, which cuBLAS reads when a process first uses CUDA, is set
    and stays set.

    Args:
        enabled: if it is False, nothing is changed.
        device: where the run trains, as `train` takes it. On CPUs, runs are deterministic anyway.

    Raises:
        ConfigError: the process has used CUDA already without the variable, or the model needs an
            algorithm of which torch has no deterministic form.
    """
    if not enabled:
        yield
        return
    if device != "cpu" and torch.cuda.is_available():
        _set_workspace()
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise ConfigError(
            f"deterministic: torch cannot compute this model so ({first_line(error)}); set "
            "deterministic=false, or train on a CPU"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2:]


def _set_workspace() -> None:
    value = os.environ.get(_WORKSPACE)
    if value in _WORKSPACES:
        return
    if value is not None or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        problem = f"is {value!r}" if value is not None else "was not set before CUDA was used"
        raise ConfigError(
            f"deterministic: the environment variable {_WORKSPACE} {problem}; start the process "
            f"with {_WORKSPACE}={_WORKSPACES[0]}"
        )
    os.environ[_WORKSPACE] = _WORKSPACES[0]
