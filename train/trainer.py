"""The training loop: SGD over samples that follow from (seed, iteration, index), checkpoints, validation."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from pipeline import atomic
from pipeline.errors import InputError
from train.batches import (
    Batch,
    SampleReader,
    TrainingReader,
    ValidationReader,
    ignore_signals,
    network_input,
    unpack,
)
from train.checkpoint import BEST, Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from train.distributed import World
from train.initialise import freeze, initialise
from train.log import RunLog, draw_curves
from train.models import build
from train.recipe import Recipe, to_toml
from train.sampler import Schedule, share
from train.training_data import TrainingData
from train.volume import VolumeSpec

RESUME_LATER = 75
"""Exit status after a signal: a checkpoint was saved, and the same command goes on from it (sysexits' EX_TEMPFAIL)."""

RECIPE = "recipe.toml"
VALIDATION_SNIPPETS = 5
PROGRESS_SECONDS = 5.0
PREFETCH = 2


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes what it learns.

    Attributes:
        folder: the run's folder.
        resume: "auto" goes on from the folder's newest checkpoint, "no" refuses a folder that has one.
        workers: loader processes; 0 reads in this process.
        micro_batch: samples at a time per process; 0 takes a default that suits the device.
        checkpoint_every, validate_every, log_every: iterations; 0 takes a default that suits the length.
        keep: newest checkpoints to keep.
        compiled: use torch.compile.
        tensorboard: write events if tensorboard is installed.
        stop_after: stop as if signalled after this iteration (for tests of resuming); 0 never.
    """

    folder: Path
    resume: str = "auto"
    workers: int = 0
    micro_batch: int = 0
    checkpoint_every: int = 0
    validate_every: int = 0
    log_every: int = 0
    keep: int = 3
    compiled: bool = False
    tensorboard: bool = True
    stop_after: int = 0


@dataclass
class Interrupt:
    """Whether a signal asked to stop: its number, or 0."""

    number: int = 0


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Signals that end a run are noted, not obeyed, inside the block; a second Ctrl-C is."""
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and interrupt.number:
            raise KeyboardInterrupt
        interrupt.number = number

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    recipe: Recipe,
    spec: VolumeSpec,
    material: TrainingData,
    run: Mapping[str, Any],
    options: Options,
    world: World,
    init: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Train a network; returns the exit status: 0 when done, `RESUME_LATER` or 130 when stopped by a signal.

    Args:
        recipe: what decides what is learnt.
        spec: the network's input, `recipe.volume(stream)`.
        material: videos, heads, groups held out.
        run: dataset, split, stream and the like, plain values; compared on resuming, like the recipe.
        options: how to carry it out.
        world: the processes that train together.
        init: weights to start from.
        say: called with lines for the user, in the first process.

    Raises:
        InputError: impossible combinations, configuration differences on resuming, a loss that is not finite, a full
            disk.
    """
    trainer = Trainer(
        recipe, spec, material, dict(run), options, world, say if world.first else lambda _: None
    )
    with interruptible() as interrupt:
        trainer.start(init)
        return trainer.loop(interrupt)


class Trainer:
    """One run in one process; see `train`."""

    def __init__(
        self,
        recipe: Recipe,
        spec: VolumeSpec,
        material: TrainingData,
        run: dict[str, Any],
        options: Options,
        world: World,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.spec, self.material, self.run = recipe, spec, material, run
        self.options, self.world, self.say = options, world, say
        if recipe.batch < world.size:
            raise InputError(f"batch {recipe.batch} is smaller than the {world.size} processes that share it")
        self.indices = share(recipe.batch, world.rank, world.size)
        gpu = world.device.type == "cuda"
        self.micro_batch = options.micro_batch or (recipe.batch if gpu else 32)
        self.pieces = 1  # into how many parts a micro-batch is split, since it does not fit otherwise
        self.bf16 = recipe.precision == "bf16" or (
            recipe.precision == "auto" and gpu and torch.cuda.is_bf16_supported()
        )
        bounds = [0]
        for classes in material.heads.values():
            bounds.append(bounds[-1] + len(classes))
        self.ranges = list(itertools.pairwise(bounds))
        self.reader = TrainingReader(material.train, spec, recipe)
        torch.manual_seed(recipe.seed)
        self.network = build(recipe.model, spec.channels, bounds[-1], recipe.dropout, spec.crop, recipe.width)
        self.iteration = 0
        self.progress: dict[str, Any] = {}

    # --- starting ---------------------------------------------------------------------------------------------------

    def start(self, init: Path | None) -> None:
        """Weights from `init` or a checkpoint of the run, on the device, ready to learn."""
        recipe, world = self.recipe, self.world
        error, resumed = None, None
        try:
            resumed = self.find_resume() if world.first else None
            if world.first and resumed is None:
                self.check_new(init)
        except InputError as found:
            error = str(found)
        world.agree(error)
        path = world.share(resumed.path if resumed else None)
        if path is not None and resumed is None:
            resumed = load_checkpoint(path, optimiser=True)
        if resumed is None and init is not None:
            classes = [name for head in self.material.heads.values() for name in head]
            self.say(f"{init}: {initialise(self.network, init, classes)}")
        self.frozen = freeze(self.network, recipe.trained, recipe.partial_bn)
        if resumed is not None:
            self.network.load_state_dict(resumed.weights)
        device = world.device
        self.network.to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
                recipe.precision != "fp32"
            )
        if recipe.sync_bn and world.size > 1:
            if device.type != "cuda":
                raise InputError("sync_bn: torch exchanges batch statistics between GPUs only")
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.optimiser = torch.optim.SGD(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        if resumed is not None:
            self.optimiser.load_state_dict(resumed.optimiser)
            self.iteration, self.progress = resumed.iteration, resumed.progress
            self.say(f"resuming {self.options.folder} after iteration {self.iteration}")
        callable_network: nn.Module = self.network
        if self.options.compiled:
            callable_network = torch.compile(self.network)  # type: ignore[assignment]
        if world.size > 1:
            callable_network = DistributedDataParallel(
                callable_network, device_ids=[device.index] if device.type == "cuda" else None
            )
        self.callable = callable_network

    def find_resume(self) -> Checkpoint | None:
        """The newest valid checkpoint of the run folder, if it is of this configuration.

        Raises:
            InputError: another configuration (the differences are listed), none valid, or resuming was not wanted.
        """
        found = checkpoints(self.options.folder)
        if not found:
            return None
        if self.options.resume == "no":
            raise InputError(
                f"{self.options.folder} holds {len(found)} checkpoint(s): remove the folder to start again, choose "
                "another --run, or leave out --resume no to go on"
            )
        for path in found:
            try:
                resumed = load_checkpoint(path, optimiser=True)
            except InputError as error:
                self.say(f"warning: {error}; trying the one before")
                continue
            differences = configuration_differences(
                {**resumed.recipe, **resumed.run}, {**self.recipe.as_dict(), **self.run}
            )
            if differences:
                raise InputError(
                    f"{self.options.folder} was trained with another configuration:\n"
                    + "".join(f"  {line}\n" for line in differences)
                    + "repeat its options to go on, or choose another --run"
                )
            return resumed
        raise InputError(
            f"{self.options.folder}: none of its {len(found)} checkpoints can be read; choose another --run"
        )

    def check_new(self, init: Path | None) -> None:
        if self.recipe.pretrained and init is None:
            raise InputError(
                "this recipe starts from pre-trained weights: give --init FILE (a torchvision-style state dict for "
                f"{self.recipe.model}, or a checkpoint or run folder of `python -m train`)"
            )

    # --- the loop -----------------------------------------------------------------------------------------------

    def loop(self, interrupt: Interrupt) -> int:
        """Iterate to the end or to a signal."""
        recipe, options, world = self.recipe, self.options, self.world
        if self.iteration >= recipe.iterations:
            self.say(f"{options.folder}: complete, {self.iteration} iterations")
            return 0
        log = None
        if world.first:
            atomic.sweep(options.folder)
            with atomic.writing(options.folder / RECIPE) as temporary:
                temporary.write_text(to_toml(recipe.as_dict(), self.run), encoding="utf-8")
            log = RunLog(options.folder, self.iteration, options.tensorboard)
        validate_every = options.validate_every or max(1, recipe.iterations // 20)
        checkpoint_every = options.checkpoint_every or max(1, min(1000, recipe.iterations // 10))
        log_every = options.log_every or 10
        schedule = Schedule(self.indices, self.micro_batch, self.iteration, recipe.iterations)
        meter = Meter(self)
        saved = self.iteration
        status = 0
        with (
            self.batches(self.reader, schedule, schedule.largest) as batches,
            contextlib.closing(log or io.StringIO()),
        ):
            while self.iteration < recipe.iterations:
                self.step(batches, schedule.micro_batches, meter)
                self.iteration += 1
                done = self.iteration == recipe.iterations
                number = int(world.largest(interrupt.number))
                if not number and options.stop_after == self.iteration:
                    number = signal.SIGTERM
                if done or number or self.iteration % log_every == 0:
                    meter.flush(log)
                if self.material.validation and (done or self.iteration % validate_every == 0) and not number:
                    meter.flush(log)
                    self.validate(log)
                    meter.restart()
                if done or number or self.iteration % checkpoint_every == 0:
                    meter.flush(log)
                    self.save()
                    saved = self.iteration
                    meter.restart()
                if number and not done:
                    status = 128 + number if number == signal.SIGINT else RESUME_LATER
                    self.say(
                        f"{signal.Signals(number).name}: saved after iteration {saved} of {recipe.iterations}; "
                        f"the same command goes on (exit status {status})"
                    )
                    break
        if world.first:
            draw_curves(options.folder)
        if not status:
            self.say(f"done: {recipe.iterations} iterations, {options.folder}")
        return status

    @contextlib.contextmanager
    def batches(self, reader: SampleReader, schedule: Any, samples: int) -> Iterator[Iterator[Batch]]:
        """Batches in the schedule's order, read ahead by worker processes, which end with the block."""
        workers = self.options.workers
        if workers:
            reader.share_memory(workers, PREFETCH, samples)
        loader = DataLoader(
            reader,
            batch_sampler=schedule,
            num_workers=workers,
            collate_fn=as_it_is,  # type: ignore[arg-type]
            pin_memory=self.world.device.type == "cuda",
            worker_init_fn=ignore_signals,
            prefetch_factor=PREFETCH if workers else None,
            multiprocessing_context="fork" if workers else None,
        )
        batches = iter(loader)
        try:
            yield batches
        finally:
            if workers:
                # They ignore SIGTERM, by which Python would end them later on.
                batches._shutdown_workers()  # type: ignore[attr-defined]
                for worker in batches._workers:  # type: ignore[attr-defined]
                    worker.kill()

    def step(self, batches: Iterator[Batch], micro_batches: list[list[range]], meter: Meter) -> None:
        """One iteration: gradients of the whole batch, piece by piece, then one update."""
        rate = self.recipe.learning_rate_at(self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        for layer in self.frozen:
            layer.eval()
        self.optimiser.zero_grad(set_to_none=True)
        counts = self.reader.head_counts(self.iteration, len(self.ranges))
        for reads in micro_batches:
            parts = []
            for _ in reads:
                before = time.perf_counter()
                batch = next(batches)
                meter.waited += time.perf_counter() - before
                parts.append(self.ready(batch))
            self.accumulate(join(parts), counts, reads is micro_batches[-1], meter)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimiser.step()
        meter.next_iteration(rate)

    def accumulate(self, samples: Samples, counts: Sequence[int], last: bool, meter: Meter) -> None:
        """Add the gradient of one micro-batch; gradients are exchanged with the last one."""
        while True:
            parts = split(samples, self.pieces)
            begun = False
            try:
                for part in parts:
                    exchange = last and part is parts[-1]
                    quiet = isinstance(self.callable, DistributedDataParallel) and not exchange
                    with self.callable.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                        logits = self.logits(self.callable, part)
                        loss, stats = head_losses(logits, part.label, part.head, self.ranges, counts)
                        begun = True
                        # DistributedDataParallel averages over processes; the loss is a sum over samples.
                        (loss * self.world.size).backward()
                    meter.add(stats)
                return
            except torch.cuda.OutOfMemoryError as error:
                size = len(samples.label) // self.pieces
                # Once gradients are being added up, a second try would count some of them twice.
                if begun or self.world.size > 1 or size < 2:
                    raise InputError(
                        f"out of GPU memory with {size} samples at a time: choose a smaller --micro-batch; "
                        "the result stays the same, since gradients are added up"
                    ) from error
            self.pieces *= 2
            torch.cuda.empty_cache()
            self.say(f"out of GPU memory: going on with {size // 2} samples at a time")

    def ready(self, batch: Batch) -> Samples:
        """A batch of bytes as the network's input, on the device."""
        device, batch = self.world.device, unpack(batch)
        with torch.no_grad():
            inputs = network_input(batch, self.spec, device)
            # Every snippet has dropout masks of its own.
            keys = batch.key[:, None] + torch.arange(inputs.shape[1]) * (1 << 32)
            return Samples(inputs, batch.label.to(device), batch.head.to(device), keys.to(device))

    def logits(self, network: nn.Module, samples: Samples) -> Tensor:
        """Logits of every sample, averaged over its snippets: float32[B,classes]."""
        inputs = samples.inputs.flatten(0, 1)
        if inputs.device.type == "cuda":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            logits = network(inputs, samples.keys.flatten())
        return logits.float().unflatten(0, samples.inputs.shape[:2]).mean(dim=1)

    # --- validation and saving ------------------------------------------------------------------------------------

    def validate(self, log: RunLog | None) -> None:
        """Loss, accuracy and top-5 accuracy per head on what was held out; notes the best checkpoint."""
        reader = ValidationReader(
            self.material.validation, self.spec, 1 if self.images else VALIDATION_SNIPPETS
        )
        mine = range(self.world.rank, len(reader.items), self.world.size)
        size = max(1, self.micro_batch // reader.snippets)
        chunks = [[(0, index) for index in mine[i : i + size]] for i in range(0, len(mine), size)]
        totals = torch.zeros(len(self.ranges), 4, dtype=torch.float64)
        self.network.eval()
        with torch.no_grad(), self.batches(reader, chunks, size) as batches:
            for batch in batches:
                samples = self.ready(batch)
                totals += validation_stats(self.logits(self.network, samples), samples, self.ranges)
        self.world.sum(totals)
        results: dict[str, dict[str, float]] = {}
        for name, (loss, correct, among_five, count) in zip(
            self.material.heads, totals.tolist(), strict=True
        ):
            if count:
                results[name] = {
                    "loss": loss / count,
                    "accuracy": correct / count,
                    "top5": among_five / count,
                }
        if log is not None:
            log.add({"iteration": self.iteration, "validation": results})
        for name, result in results.items():
            self.say(
                f"iteration {self.iteration}: validation {name} loss {result['loss']:.4f} "
                f"error top-1 {1 - result['accuracy']:.1%} top-5 {1 - result['top5']:.1%}"
            )
        accuracy = next(iter(results.values()))["accuracy"] if results else 0.0
        if accuracy > self.progress.get("best_accuracy", -1.0):
            self.progress = {"best_accuracy": accuracy, "best_iteration": self.iteration}
            self.save()
            if self.world.first:
                link_best(self.options.folder, self.iteration)

    @property
    def images(self) -> bool:
        """Whether the run learns from image files."""
        return isinstance(self.material.train[0].source, Path)

    def save(self) -> None:
        """Write a checkpoint and remove those that are no longer wanted.

        Raises:
            InputError: weights that are not finite, or a full disk; older checkpoints stay.
        """
        error = None
        if self.world.first:
            try:
                self.write()
            except InputError as found:
                error = str(found)
        self.world.agree(error)

    def write(self) -> None:
        weights = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise InputError(
                f"weights are not finite after iteration {self.iteration} (learning rate "
                f"{self.recipe.learning_rate_at(self.iteration - 1):g}): {', '.join(broken[:3])}; not saved"
            )
        path = self.options.folder / f"checkpoint-{self.iteration:08d}.pt"
        save_checkpoint(
            path,
            Checkpoint(
                weights=weights,
                recipe=self.recipe.as_dict(),
                run=self.run,
                volume=self.spec,
                heads=dict(self.material.heads),
                iteration=self.iteration,
                optimiser=self.optimiser.state_dict(),
                progress=self.progress,
            ),
        )
        for old in checkpoints(self.options.folder)[max(self.options.keep, 1) :]:
            old.unlink(missing_ok=True)


class Meter:
    """Losses and times between two lines of the log; losses stay on the device until then."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.current: list[Tensor] = []
        self.done: list[tuple[int, float, Tensor]] = []
        self.said = 0.0
        self.restart()

    def restart(self) -> None:
        """Leave out the time spent on other things than iterating."""
        self.begun, self.waited = time.perf_counter(), 0.0

    def add(self, stats: Tensor) -> None:
        self.current.append(stats)

    def next_iteration(self, rate: float) -> None:
        self.done.append((self.trainer.iteration + 1, rate, torch.stack(self.current).sum(dim=0)))
        self.current = []

    def flush(self, log: RunLog | None) -> None:
        """Log the iterations since the last time.

        Raises:
            InputError: a loss that is not finite; iteration and learning rate are named.
        """
        if not self.done:
            return
        trainer = self.trainer
        stats = trainer.world.sum(torch.stack([stats for _, _, stats in self.done]).double().cpu())
        seconds = (time.perf_counter() - self.begun) / len(self.done)
        waiting = self.waited / (time.perf_counter() - self.begun)
        for (iteration, rate, _), heads in zip(self.done, stats, strict=True):
            losses = heads[:, 0] / heads[:, 2].clamp(min=1)
            if not losses.isfinite().all():
                trainer.world.fail(
                    f"the loss is {float(losses.sum())} at iteration {iteration} (learning rate {rate:g}): stopped; "
                    "try a smaller --learning-rate, --clip or --warmup, and see the last checkpoint in "
                    f"{trainer.options.folder}"
                )
            record: dict[str, Any] = {
                "iteration": iteration,
                "loss": float(losses.sum()),
                "accuracy": float(heads[:, 1].sum() / heads[:, 2].sum()),
                "learning_rate": rate,
                "seconds": round(seconds, 5),
                "waiting": round(waiting, 4),
            }
            if len(heads) > 1:
                names = trainer.material.heads
                record["heads"] = {name: float(loss) for name, loss in zip(names, losses, strict=True)}
            if log is not None:
                log.add(record)
        last = self.done[-1][0] == trainer.recipe.iterations
        if last or time.perf_counter() - self.said > PROGRESS_SECONDS:
            self.said = time.perf_counter()
            left = seconds * (trainer.recipe.iterations - record["iteration"])
            count = sum(len(values) for values in (self.done,))
            mean = float((stats[:, :, 0] / stats[:, :, 2].clamp(min=1)).sum(dim=1).mean())
            right = float(stats[:, :, 1].sum() / stats[:, :, 2].sum())
            trainer.say(
                f"iteration {record['iteration']}/{trainer.recipe.iterations}: loss {mean:.4f} accuracy {right:.1%} "
                f"(last {count}), rate {record['learning_rate']:g}, {seconds:.3f} s each, "
                f"{waiting:.0%} waiting for data, {duration(left)} left"
            )
        self.done = []
        self.restart()


def as_it_is(batch: Batch) -> Batch:
    """Collate function of readers that give whole batches."""
    return batch


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


class Samples(NamedTuple):
    """B samples of K snippets on the device: inputs float[B,K,C,H,W], label and head int64[B], keys int64[B,K]."""

    inputs: Tensor
    label: Tensor
    head: Tensor
    keys: Tensor


def join(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other."""
    return (
        parts[0]
        if len(parts) == 1
        else Samples(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    )


def split(samples: Samples, pieces: int) -> list[Samples]:
    """Samples in at most `pieces` parts of nearly equal size."""
    count = len(samples.label)
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [Samples(*(tensor[a:b] for tensor in samples)) for a, b in itertools.pairwise(edges) if a < b]


def head_losses(
    logits: Tensor, label: Tensor, head: Tensor, ranges: Sequence[tuple[int, int]], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Sum over heads of the share of their mean loss that these samples make up.

    Args:
        logits: [B,classes] of all heads.
        label, head: int64[B]; labels are columns of the last layer.
        ranges: columns of each head.
        counts: samples of each head in the whole batch, over all processes and micro-batches.

    Returns:
        The loss, and detached float32[heads,3]: summed loss, correct ones, samples.
    """
    loss = logits.new_zeros(())
    stats = []
    for i, ((start, stop), count) in enumerate(zip(ranges, counts, strict=True)):
        if len(ranges) == 1:
            own, wanted = logits, label
        else:
            mine = head == i
            own, wanted = logits[mine, start:stop], label[mine] - start
        summed = F.cross_entropy(own, wanted, reduction="sum")
        loss = loss + summed / max(count, 1)
        correct = (own.argmax(dim=1) == wanted).sum()
        stats.append(torch.stack([summed.detach(), correct.float(), correct.new_tensor(len(wanted)).float()]))
    return loss, torch.stack(stats)


def validation_stats(logits: Tensor, samples: Samples, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Per head: summed loss, correct, correct among the first five, samples; float64[heads,4] on the CPU."""
    stats = torch.zeros(len(ranges), 4, dtype=torch.float64)
    logits, label, head = logits.double().cpu(), samples.label.cpu(), samples.head.cpu()
    for i, (start, stop) in enumerate(ranges):
        mine = head == i
        own, wanted = logits[mine, start:stop], label[mine] - start
        if len(wanted):
            ranked = own.topk(min(5, stop - start), dim=1).indices == wanted[:, None]
            stats[i, 0] = F.cross_entropy(own, wanted, reduction="sum")
            stats[i, 1], stats[i, 2], stats[i, 3] = ranked[:, 0].sum(), ranked.any(dim=1).sum(), len(wanted)
    return stats


def configuration_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key whose value is another one."""
    return [
        f"{key}: {before.get(key, 'not set')} there, {now.get(key, 'not set')} asked for"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def link_best(folder: Path, iteration: int) -> None:
    """Make best.pt the checkpoint of an iteration: another name for the file where links exist, else a copy."""
    source = folder / f"checkpoint-{iteration:08d}.pt"
    with atomic.writing(folder / BEST) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)
