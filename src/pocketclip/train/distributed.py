"""Several processes that train together: start and stop, collectives.

    torchrun --nproc-per-node 2 -m pocketclip.train RECIPE.yaml

Every function also works in a single process, at no cost. Processes are called ranks; all ranks
must call the same functions in the same order.

Shapes: B rows of all ranks, b rows of one rank, D columns.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.distributed.rendezvous import rendezvous

from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.train.starts import own_store

ObjectT = TypeVar("ObjectT")

_START_TIMEOUT = datetime.timedelta(minutes=10)
"""Processes wait this long for all others to start."""
_COLLECTIVE_TIMEOUT = datetime.timedelta(hours=4)
"""Afterwards they wait this long in a collective: hours, as the main rank scores checkpoints. Ranks
that fail are noticed earlier, see `watchdog`."""
_sizes_agreed = contextvars.ContextVar("sizes_agreed", default=False)
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class World:
    """This process's rank among those that train together, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0


def start(device: str) -> World:
    """Join the processes that `torchrun` started; without torchrun, return a world of one.

    Args:
        device: `cpu` (gloo) or `cuda` (nccl, and gloo for numbers on the CPU); each process takes
            the GPU of its local rank. A single process may use any device that torch knows.

    Raises:
        ConfigError: there is no such device, torchrun's variables are incomplete, or the other
            processes cannot be reached.
    """
    chosen = _device(device)
    if dist.is_available() and dist.is_initialized():
        local_rank = int(os.environ.get("LOCAL_RANK", str(dist.get_rank())))
        local_device = _local_device(chosen, local_rank)
        return World(dist.get_rank(), dist.get_world_size(), local_rank, local_device)
    if "WORLD_SIZE" not in os.environ:
        return World(0, 1, 0, chosen)
    rank, size, local_rank = _read_ranks()
    if size == 1:
        return World(0, 1, 0, _local_device(chosen, local_rank))
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"several processes can train on `cpu` or `cuda`, not on {device!r}")
    chosen = _local_device(chosen, local_rank)
    try:
        # Gloo beside nccl: sizes and numbers are exchanged without waiting for the GPU.
        backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
        # A shorter timeout until all have started: one may have failed before.
        store, rank, size = next(rendezvous("env://", rank, size, timeout=_START_TIMEOUT))
        own = own_store(store, rank, size, _START_TIMEOUT)
        store.set_timeout(_COLLECTIVE_TIMEOUT)
        dist.init_process_group(
            backend, store=own, rank=rank, world_size=size, timeout=_COLLECTIVE_TIMEOUT
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"rank {rank} of {size} cannot reach the others through {address}: {error}"
        ) from error
    return World(rank, size, local_rank, chosen)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device {name!r}; use `cpu` or `cuda`") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch finds no CUDA device; use `cpu`")
    return device


def _local_device(device: torch.device, local_rank: int) -> torch.device:
    """Return the GPU of this local rank, unless `device` names one, and make it current."""
    if device.type != "cuda":
        return device
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own: there are "
            f"{torch.cuda.device_count()}; start at most one process per GPU on each machine"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _read_ranks() -> tuple[int, int, int]:
    """Return rank, world size and local rank from the environment."""
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is set, but not {', '.join(missing)}; start with torchrun, which sets "
            "them all, or unset WORLD_SIZE"
        )
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in _VARIABLES[:3])
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be integers: {error}") from None
    if not 0 <= rank < size or local_rank < 0:
        raise ConfigError(f"RANK {rank} (local {local_rank}) does not fit WORLD_SIZE {size}")
    return rank, size, local_rank


def stop() -> None:
    """Leave the process group; does nothing in a single process."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank has called this."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: ObjectT, source: int = 0) -> ObjectT:
    """Return rank `source`'s `value` on every rank; it is pickled, between our own processes."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def on_main(call: Callable[[], ObjectT]) -> ObjectT:
    """Return on every rank what `call` returns on the main one; the others wait for it.

    A PocketclipError or OSError that `call` raises is raised on every rank.
    """
    result: Any = None
    problem: Exception | None = None
    if is_main():
        try:
            result = call()
        except (PocketclipError, OSError) as error:  # the others are waiting
            problem = error
    result, problem = broadcast_object((result, problem))
    if problem is not None:
        raise problem
    return result


def average(values: dict[str, float]) -> dict[str, float]:
    """Return the mean over ranks of each value, bit-identical on every rank.

    Raises:
        ConfigError: the ranks pass different names.
    """
    if world_size() == 1 or not values:
        return dict(values)
    names = sorted(values)
    _check_equal("values to average", [len(names), zlib.crc32("\0".join(names).encode())])
    mine = torch.tensor([values[name] for name in names], dtype=torch.float64)
    means = all_rows(mine.to(_small_device())[None]).mean(0).tolist()
    by_name = dict(zip(names, means, strict=True))
    return {name: by_name[name] for name in values}


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """Return for each flag whether it is true on any rank; all pass the same number of them."""
    if world_size() == 1:
        return list(flags)
    shared = torch.tensor(list(flags), dtype=torch.uint8, device=_small_device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, (B, ...), rank 0's first; gradients flow back to each rank.

    The gradient of a rank's rows is the sum of all ranks' gradients for them. If each rank's loss
    is a mean over its own rows, and DistributedDataParallel averages gradients over ranks, the
    step equals that of one process with the joined batch.

    Args:
        rows: (b, ...) of any dtype; the same shape on every rank, which is checked unless
            `sizes_agreed`.

    Raises:
        ConfigError: shapes or dtypes differ between ranks.
    """
    if world_size() == 1:
        return rows
    if _sizes_agreed.get():
        return _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    # Collectives on unequal sizes hang or return garbage.
    kind = zlib.crc32(str(rows.dtype).encode())
    _check_equal(f"rows to gather (here {tuple(rows.shape)})", [rows.ndim, kind])
    _check_equal(f"rows to gather (here {tuple(rows.shape)})", list(rows.shape))
    return _GatherRows.apply(rows)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def sizes_agreed() -> Iterator[None]:
    """Within this context, `gather_rows` exchanges no sizes before it exchanges rows.

    For steps that repeat a checked one: each rank must assert that its own sizes stayed the same.
    """
    token = _sizes_agreed.set(True)
    try:
        yield
    finally:
        _sizes_agreed.reset(token)


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        return all_rows(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows].to(grad.dtype)


def all_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, without gradients and without comparing sizes."""
    # As bytes: gloo does not know every dtype.
    mine = rows.detach().contiguous().reshape(-1).view(torch.uint8)
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts).view(rows.dtype).reshape(-1, *rows.shape[1:])


def _small_device() -> torch.device:
    """Return the device for exchanging small values: the CPU if the backend supports it."""
    if "cpu" in str(dist.get_backend_config()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _check_equal(what: str, numbers: Sequence[int]) -> None:
    """Check that `numbers`, of equal length on all ranks, are the same on all ranks."""
    mine = torch.tensor([list(numbers)], dtype=torch.int64, device=_small_device())
    by_rank = all_rows(mine).tolist()
    if any(other != by_rank[0] for other in by_rank):
        raise ConfigError(
            f"{what} differ between ranks: {by_rank}; every process needs the same batch size "
            "and settings"
        )
