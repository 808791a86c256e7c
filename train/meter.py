"""Losses and times of iterations, for the log and for the progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.loader import Readback
from train.log import RunLog
from train.losses import mean_losses


class Unread(NamedTuple):
    """An iteration whose losses may still be on the device; see `Meter.add`."""

    iteration: int
    lr: float
    stats: Sequence[Readback]


class NotFinite(Exception):
    """A loss that is infinite or not a number, with its iteration (from 1) and learning rate."""

    def __init__(self, iteration: int, lr: float, loss: float) -> None:
        super().__init__(iteration, lr, loss)
        self.iteration, self.lr, self.loss = iteration, lr, loss


class Meter:
    """Collects iterations between two writes of the log."""

    def __init__(self, heads: Sequence[str], log: RunLog | None, say: Callable[[str], None]) -> None:
        """An empty meter.

        Args:
            heads: names of the heads, in the order of the stats.
            log: where iterations are written; None in all processes but the first.
            say: called with losses and learning rate whenever iterations are logged.
        """
        self.heads, self.log, self.say = list(heads), log, say
        self.unread: list[Unread] = []
        self._collected: list[tuple[int, float, Tensor]] = []
        self.restart()

    def restart(self) -> None:
        """Leave out the time spent on anything but iterating, such as validation."""
        self._begun, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add(self, iteration: int, lr: float, stats: Sequence[Readback]) -> None:
        """One iteration, whose losses need not have been computed yet.

        Args:
            iteration: its number, from 1.
            lr: its learning rate.
            stats: of the parts of this process's share of the batch, as `head_losses` returns them.
        """
        self.unread.append(Unread(iteration, lr, stats))

    def read(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Wait for the losses of the iterations added so far.

        Args:
            add_up: sums a tensor over the processes that train together, each of which reads at the same iterations.

        Raises:
            NotFinite: a loss of one of them.
        """
        if not self.unread:
            return
        zero = torch.zeros(len(self.heads), 3, dtype=torch.float64)
        read = [sum((part.wait() for part in one.stats), zero) for one in self.unread]
        totals = add_up(torch.stack(read))
        for one, stats in zip(self.unread, totals, strict=True):
            losses = mean_losses(stats)
            if not losses.isfinite().all():
                raise NotFinite(one.iteration, one.lr, float(losses.sum()))
            self._collected.append((one.iteration, one.lr, stats))
        self.unread = []

    def flush(self) -> None:
        """Write the iterations that were read to the log, and report them."""
        if not self._collected:
            return
        elapsed = time.perf_counter() - self._begun
        seconds, waiting = elapsed / len(self._collected), self._waited / elapsed
        for iteration, lr, stats in self._collected:
            losses = mean_losses(stats)
            record: dict[str, Any] = {
                "iteration": iteration,
                "loss": float(losses.sum()),
                "accuracy": float(stats[:, 1].sum() / stats[:, 2].sum()),
                "learning_rate": lr,
                "seconds": round(seconds, 5),
                "waiting": round(waiting, 4),
            }
            if len(losses) > 1:
                record["heads"] = dict(zip(self.heads, losses.tolist(), strict=True))
            if self.log is not None:
                self.log.add(record)
        self.say(self._losses(lr, waiting))
        self._collected = []
        self.restart()

    def _losses(self, lr: float, waiting: float) -> str:
        stats = torch.stack([stats for _, _, stats in self._collected])
        loss = float(mean_losses(stats).sum(dim=1).mean())
        accuracy = float(stats[:, :, 1].sum() / stats[:, :, 2].sum())
        return (
            f"loss {loss:.4f} accuracy {accuracy:.1%} (last {len(stats)}), learning rate {lr:g}, "
            f"{waiting:.0%} waiting for data"
        )
