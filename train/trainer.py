"""The training loop: SGD over samples that follow from (seed, iteration, index), checkpoints, validation."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import atomic
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.runs import RunPaths, RunRecord
from pipeline.shard import Shard
from pipeline.text import duration, first_line, many, typed
from train.batches import Batch, Key, SampleReader
from train.checkpoint import (
    Checkpoint,
    link_best,
    load_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from train.distributed import World
from train.gpu_errors import gpu_errors
from train.initialise import freeze, initialise
from train.interrupt import Interrupt, exit_status, interruptible
from train.loader import DeviceFeed, Readback, loading, network_input
from train.log import RunLog, draw_curves
from train.losses import (
    Samples,
    head_losses,
    join,
    split,
    validation_stats,
)
from train.meter import Meter, NotFinite
from train.models import build
from train.models.network import Network
from train.options import LoopOptions
from train.pretrained import FILES, fetch
from train.recipe import Recipe, to_toml
from train.resume import find_resumable
from train.sampler import Schedule, TrainingReader, ValidationReader, share
from train.training_data import TrainingData
from train.volume_spec import VolumeSpec

VALIDATION_SNIPPETS = 5
CPU_MICRO_BATCH = 32
FORECAST_FIRST, FORECAST_LAST = 2, 5
"""Iterations of this process after which the time of the whole run is estimated: the first few are slower than the
rest.
"""
LARGEST_INPUT = 1e5
"""Far beyond any motion in pixels or any colour."""


def train(
    recipe: Recipe,
    spec: VolumeSpec,
    data: TrainingData,
    record: RunRecord,
    folder: Path,
    options: LoopOptions,
    world: World,
    init: str | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Train a network, resuming from the run's newest checkpoint if it has one.

    Args:
        recipe: what decides what is learned.
        spec: the network's input, `recipe.volume(stream)`.
        data: training and validation videos with their labels.
        record: dataset, split, stream and so on; compared on resuming, like the recipe.
        folder: the run's folder.
        options: how to carry it out.
        world: the processes that train together.
        init: initial weights.
        say: called with lines for the user, in the first process.

    Returns:
        The exit status: 0 when done, `RESUME_LATER` or 130 when stopped by a signal.

    Raises:
        InputError: impossible combinations, a different configuration on resuming, a loss that is not finite, a file
            that cannot be written.
        DeviceFailed: the GPU failed or ran out of memory.
    """
    run, say = RunPaths(folder), say if world.first else lambda _: None
    with interruptible() as interrupt:
        path = None
        with world.agreeing():
            if world.first:
                path = find_resumable(run, recipe, record, data.requests, options.resume, say)
            if world.first and path is None and recipe.pretrained and init is None:
                published = "imagenet" if recipe.model in FILES else "MatConvNet's imagenet-vgg-m-2048.mat"
                raise InputError(
                    "this recipe starts from pre-trained weights: give --init FILE (a torchvision-style state dict for "
                    f"{recipe.model}, a checkpoint or run folder of `{typed('train')}`, or {published})"
                )
        resumed = load_checkpoint(path, optimiser=True) if (path := world.share(path)) else None
        with world.agreeing(), gpu_errors("--micro-batch"):
            trainer = Trainer(recipe, spec, data, record, run, options, world, init, resumed, say)
        with gpu_errors("--micro-batch"):
            return trainer.loop(interrupt)


class Trainer:
    """One run in one process, ready to iterate; see `train` for the arguments.

    Attributes:
        network: the network, on the device.
        optimiser: SGD over the parameters that are trained.
        iteration: number of iterations done.
    """

    def __init__(
        self,
        recipe: Recipe,
        spec: VolumeSpec,
        data: TrainingData,
        record: RunRecord,
        run: RunPaths,
        options: LoopOptions,
        world: World,
        init: str | None,
        resumed: Checkpoint | None,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.spec, self.data, self.record = recipe, spec, data, record
        self.run, self.options, self.world, self.say = run, options, world, say
        if recipe.batch < world.size:
            raise InputError(f"batch {recipe.batch} is smaller than the {world.size} processes that share it")
        gpu = world.device.type == "cuda"
        self.indices = share(recipe.batch, world.rank, world.size)
        self.micro_batch = options.micro_batch or (recipe.batch if gpu else CPU_MICRO_BATCH)
        self.pieces = (
            1  # into how many parts a micro-batch is split, once one did not fit in the GPU's memory
        )
        self.bf16 = recipe.precision == "bf16" or (
            recipe.precision == "auto" and gpu and torch.cuda.is_bf16_supported()
        )
        bounds = [0, *itertools.accumulate(len(classes) for classes in data.heads.values())]
        self.ranges = list(itertools.pairwise(bounds))
        self.reader = TrainingReader(data.train, spec, recipe)
        self.feed = DeviceFeed(spec, world.device)
        self.network = self._initial_network(bounds[-1], init if resumed is None else None)
        self.frozen = freeze(self.network, recipe.trained, recipe.partial_bn)
        smallest = min(len(self.indices), len(self.indices) % self.micro_batch or self.micro_batch)
        check_batch_norm(self.network, self.frozen, smallest * recipe.segments)
        if resumed is not None:
            self.network.load_state_dict(resumed.weights)
        place(self.network, world.device, recipe.precision)
        self.optimiser = torch.optim.SGD(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        self.iteration = 0
        self.progress: dict[str, Any] = {}
        if resumed is not None:
            restore(self.optimiser, resumed)
            self.iteration, self.progress = resumed.iteration, resumed.progress
            say(f"resuming {run.folder} after iteration {self.iteration}")
        self.parallel = in_parallel(self.network, world, options.compiled)

    def _initial_network(self, classes: int, init: str | None) -> Network:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        network = build(
            recipe.model, self.spec.channels, classes, recipe.dropout, self.spec.crop, recipe.width
        )
        if init is not None:
            names = [name for head in self.data.heads.values() for name in head]
            self.say(f"{init}: {initialise(network, self._initial_weights(init), names)}")
        if recipe.sync_bn and self.world.size > 1:
            if self.world.device.type != "cuda":
                raise InputError("sync_bn: torch exchanges batch statistics between GPUs only")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return network

    def _initial_weights(self, init: str) -> Path:
        """The file or run folder that --init means; the first process downloads published weights for all."""
        if init != "imagenet":
            return Path(init)
        with self.world.agreeing():
            if self.world.first:
                fetch(self.recipe.model)
        return fetch(self.recipe.model)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def loop(self, interrupt: Interrupt) -> int:
        """Iterate to the end or to a signal; the exit status."""
        recipe, options = self.recipe, self.options
        if self.iteration >= recipe.iterations and not self.validation_is_due():
            self.link_best()
            self.say(f"{self.run.folder}: complete, {many(self.iteration, 'iteration')}")
            return 0
        stopped_by = 0
        schedule = Schedule(self.indices, self.micro_batch, self.iteration, recipe.iterations)
        checkpoint_every = options.checkpoint_interval(recipe.iterations)
        begun, first_measured = self.iteration, 0.0
        with (
            self.logging() as log,
            self.progress_of_iterations() as shown,
            shown.compiling(),
            self.loading(self.reader, schedule) as batches,
        ):
            self.catch_up(log)
            meter = Meter(list(self.data.heads), log, shown.set_detail)
            while self.iteration < recipe.iterations:
                lr = recipe.learning_rate_at(self.iteration)
                self.step(batches, schedule.micro_batches, lr, recipe.clip, meter)
                self.iteration += 1
                if self.iteration - begun == FORECAST_FIRST:
                    self.read(meter)  # waits for a GPU
                    first_measured = time.perf_counter()
                elif self.iteration - begun == FORECAST_LAST:
                    self.read(meter)
                    self.forecast((time.perf_counter() - first_measured) / (FORECAST_LAST - FORECAST_FIRST))
                stopped_by = self.stop_signal(interrupt)
                last = stopped_by or self.iteration == recipe.iterations
                if last or self.iteration % options.log_every == 0:
                    self.flush(meter)
                shown.advance()
                if not stopped_by and self.validation_is_due():
                    self.flush(meter)
                    self.validate(log)
                    meter.restart()
                if last or self.iteration % checkpoint_every == 0:
                    self.flush(meter)
                    self.save()
                    meter.restart()
                if last:
                    break
        if self.world.first:
            draw_curves(self.run.folder)
        return self.finish(stopped_by)

    def forecast(self, seconds: float) -> None:
        """Report how long the remaining iterations will take, at so many seconds each."""
        left = self.recipe.iterations - self.iteration
        self.say(
            f"expected time: about {duration(seconds * left)} for {many(left, 'more iteration')}, {seconds:.2f} s each"
            + (", and validation" if self.data.validation else "")
        )

    def progress_of_iterations(self) -> Progress:
        """The progress of the run, shown by the first process."""
        plain = None if self.world.first else True
        return Progress(
            "train", self.recipe.iterations, "iteration", done=self.iteration, plain=plain, say=self.say
        )

    def step(
        self,
        batches: Iterator[Batch],
        micro_batches: list[list[range]],
        lr: float,
        grad_clip: float,
        meter: Meter,
    ) -> None:
        """One iteration: the gradient of the whole batch, then one update of the weights.

        Losses are read before the update where that costs nothing, on a CPU, or is done anyway, when they are logged.

        Raises:
            InputError: a loss that is not finite; nothing is updated with it where it was read.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.network.train()
        for layer in self.frozen:
            layer.eval()
        self.optimiser.zero_grad(set_to_none=True)
        meter.add(self.iteration + 1, lr, self.gradients(batches, micro_batches, meter))
        if self.world.device.type == "cpu" or (self.iteration + 1) % self.options.log_every == 0:
            self.read(meter)
        if grad_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), grad_clip)
        self.optimiser.step()

    def gradients(
        self, batches: Iterator[Batch], micro_batches: list[list[range]], meter: Meter
    ) -> list[Readback]:
        """Accumulate the gradient of the whole batch; `head_losses`'s stats of this process's parts of it."""
        counts = self.reader.head_counts(self.iteration, len(self.ranges))
        readbacks: list[Readback] = []
        for reads in micro_batches:
            parts = []
            for _ in reads:
                with meter.waiting():
                    batch = next(batches)
                parts.append(self.feed(batch))
            readbacks += self.accumulate(join(parts), counts, last=reads is micro_batches[-1])
        return readbacks

    def accumulate(self, samples: Samples, counts: Sequence[int], last: bool) -> list[Readback]:
        """Add the gradient of one micro-batch; processes exchange gradients with the last one.

        Returns:
            `head_losses`'s stats of its parts.
        """
        while True:
            parts = split(samples, self.pieces)
            readbacks: list[Readback] = []
            try:
                for part in parts:
                    with self.exchanging(last and part is parts[-1]):
                        logits = self.logits(self.parallel, part)
                        loss, stats = head_losses(logits, part.label, part.head, self.ranges, counts)
                        readbacks.append(Readback(stats))
                        # DistributedDataParallel averages over processes; the loss is a sum over samples.
                        (loss * self.world.size).backward()
                return readbacks
            except torch.cuda.OutOfMemoryError as error:
                size = len(samples.label) // self.pieces
                # Once gradients are being accumulated, a second attempt would count some of them twice.
                if readbacks or self.world.size > 1 or size < 2:
                    raise InputError(
                        f"out of GPU memory with {size} samples at a time: choose a smaller --micro-batch; "
                        "the result stays the same, since gradients are accumulated"
                    ) from error
            self.pieces *= 2
            torch.cuda.empty_cache()
            self.say(f"out of GPU memory: trying {size // 2} samples at a time")

    def exchanging(self, exchange: bool) -> contextlib.AbstractContextManager[Any]:
        """Whether the block's backward pass exchanges gradients with the other processes."""
        if exchange or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.parallel.no_sync()

    def read(self, meter: Meter) -> None:
        """Wait for the losses of the iterations so far; end every process if one is not finite."""
        try:
            meter.read(self.world.sum)
        except NotFinite as found:
            cause = self.largest_input(found.iteration - 1)
            self.world.fail(
                f"the loss is {found.loss} at iteration {found.iteration} (learning rate {found.lr:g}): stopped before "
                f"the update of iteration {self.iteration + 1}; {cause}try a smaller --learning-rate, --clip or "
                f"--warmup; the run's checkpoints in {self.run.folder} are intact"
            )

    def largest_input(self, iteration: int) -> str:
        """Which of this process's samples of an iteration has values that no intact shard contains; "" if none does."""
        for index in self.indices:
            key = (iteration, index)
            batch = self.reader.__getitems__([key])
            largest = float(network_input(batch, self.spec, "cpu").abs().max())
            if not largest <= LARGEST_INPUT:
                source = self.reader.item(key)[0].source
                where = source.address if isinstance(source, Shard) else source
                return f"values of up to {largest:g} come from {where}: check it ({typed('pipeline')} verify), or "
        return ""

    def flush(self, meter: Meter) -> None:
        """Log the iterations so far."""
        self.read(meter)
        meter.flush()

    def stop_signal(self, interrupt: Interrupt) -> int:
        """The signal that any process has received, or 0."""
        number = int(self.world.largest(interrupt.number))
        return number or (signal.SIGTERM if self.iteration == self.options.stop_after else 0)

    def finish(self, stopped_by: int) -> int:
        """Report how the loop ended; the exit status."""
        iterations = self.recipe.iterations
        if self.iteration == iterations and not self.validation_is_due():
            self.say(f"done: {many(iterations, 'iteration')}, {self.run.folder}")
            return 0
        status = exit_status(stopped_by)
        self.say(
            f"{signal.Signals(stopped_by).name}: saved after iteration {self.iteration} of {iterations}; "
            f"the same command resumes (exit status {status})"
        )
        return status

    # --- batches and logits -----------------------------------------------------------------------------------------

    def loading(
        self, reader: SampleReader, schedule: Iterable[list[Key]]
    ) -> contextlib.AbstractContextManager[Iterator[Batch]]:
        """Batches in the schedule's order; see `train.loader`."""
        threads = self.options.worker_count(self.world.place.processes_here)
        return loading(reader, schedule, threads, self.world.device)

    def logits(self, network: nn.Module, samples: Samples) -> Tensor:
        """Logits of every sample, averaged over its snippets: float32[B,classes]."""
        inputs = samples.inputs.flatten(0, 1)
        if inputs.device.type == "cuda":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            logits = network(inputs, samples.keys.flatten())
        return logits.float().unflatten(0, samples.inputs.shape[:2]).mean(dim=1)

    # --- validation -------------------------------------------------------------------------------------------------

    def validation_is_due(self) -> bool:
        """Whether the network as it is now should be validated, and has not been."""
        iterations = self.recipe.iterations
        every = self.options.validation_interval(iterations)
        due = self.iteration > 0 and (self.iteration == iterations or self.iteration % every == 0)
        return bool(self.data.validation) and due and self.progress.get("validated") != self.iteration

    def catch_up(self, log: RunLog | None) -> None:
        """Do what was due after the iteration that is resumed from, where a signal came first.

        So a run that was interrupted leaves the same best.pt and records the same best validation as any other.
        """
        if not self.validation_is_due():
            self.link_best()
            return
        self.validate(log)
        self.save()  # the checkpoint's record of what has been validated

    def link_best(self) -> None:
        """Make best.pt this iteration's checkpoint if it is the best so far and that was left undone when the process
        was killed.
        """
        if self.world.first and self.iteration and self.progress.get("best_iteration") == self.iteration:
            best, newest = self.run.best, self.run.checkpoint(self.iteration)
            if not best.exists() or not filecmp.cmp(best, newest, shallow=False):
                link_best(self.run, self.iteration)

    def validate(self, log: RunLog | None) -> None:
        """Validate, record the result, and save a checkpoint if it is the best so far."""
        results = validation_results(list(self.data.heads), self.validation_totals())
        if log is not None:
            log.add({"iteration": self.iteration, "validation": results})
        for name, result in results.items():
            top5 = f", top-5 {result['top5']:.1%}" if len(self.data.heads[name]) > 5 else ""
            self.say(
                f"iteration {self.iteration}: validation {name} loss {result['loss']:.4f} "
                f"accuracy {result['accuracy']:.1%}{top5}"
            )
        accuracy = next(iter(results.values()))["accuracy"] if results else 0.0
        self.progress |= {"validated": self.iteration}
        if accuracy > self.progress.get("best_accuracy", -1.0):
            self.progress |= {"best_accuracy": accuracy, "best_iteration": self.iteration}
            self.save()
            self.link_best()

    def validation_totals(self) -> Tensor:
        """`validation_stats` summed over the validation videos and all processes."""
        images = isinstance(self.data.train[0].source, Path)
        reader = ValidationReader(self.data.validation, self.spec, 1 if images else VALIDATION_SNIPPETS)
        mine = range(self.world.rank, len(reader.items), self.world.size)
        size = max(1, self.micro_batch // reader.snippets)
        chunks = [[(0, index) for index in mine[i : i + size]] for i in range(0, len(mine), size)]
        totals = torch.zeros(len(self.ranges), 4, dtype=torch.float64)
        self.network.eval()
        with torch.no_grad(), self.loading(reader, chunks) as batches:
            read = [
                (Readback(self.logits(self.network, self.feed(batch))), batch.label, batch.head)
                for batch in batches
            ]
        for logits, label, head in read:
            totals += validation_stats(logits.wait(), label, head, self.ranges)
        return self.world.sum(totals)

    # --- files ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def logging(self) -> Iterator[RunLog | None]:
        """Write recipe.toml and open the log, in the first process; None in the others."""
        if not self.world.first:
            yield None
            return
        atomic.sweep(self.run.folder)
        with atomic.writing(self.run.recipe) as temporary:
            temporary.write_text(to_toml(self.recipe.as_dict(), self.record), encoding="utf-8")
        with contextlib.closing(RunLog(self.run.folder, self.iteration, self.options.tensorboard)) as log:
            yield log

    def save(self) -> None:
        """Write a checkpoint and remove old ones.

        Raises:
            InputError: weights that are not finite, or a file that cannot be written; older checkpoints stay.
        """
        with self.world.agreeing():
            if self.world.first:
                save_checkpoint(self.run.checkpoint(self.iteration), self.checkpoint())
                remove_old_checkpoints(self.run, self.options.keep, self.iteration)

    def checkpoint(self) -> Checkpoint:
        """The run's state; InputError if weights are not finite."""
        weights = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise InputError(
                f"weights are not finite after iteration {self.iteration} (learning rate "
                f"{self.recipe.learning_rate_at(self.iteration - 1):g}): {', '.join(broken[:3])}; not saved"
            )
        return Checkpoint(
            weights=weights,
            recipe=self.recipe.as_dict(),
            run=self.record,
            volume=self.spec,
            heads=dict(self.data.heads),
            iteration=self.iteration,
            requests=dict(self.data.requests),
            optimiser=self.optimiser.state_dict(),
            progress=self.progress,
        )


def restore(optimiser: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Load the momentum of a checkpoint; learning rate and the rest follow from the recipe.

    Raises:
        InputError: it is not that of these parameters.
    """
    own = optimiser.state_dict()
    try:
        optimiser.load_state_dict({**own, "state": checkpoint.optimiser["state"]})
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for index, buffers in checkpoint.optimiser["state"].items():
            if not 0 <= index < len(parameters):
                raise ValueError(f"there is no parameter {index}")
            for name, buffer in buffers.items():
                if buffer is not None and (
                    name != "momentum_buffer" or buffer.shape != parameters[index].shape
                ):
                    raise ValueError(f"{name} of parameter {index} does not fit it")
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{checkpoint.path}: damaged checkpoint: its optimiser's state is not that of the network "
            f"({first_line(error)}); remove it to resume from the checkpoint before it"
        ) from error


def check_batch_norm(network: Network, frozen: Sequence[nn.Module], samples: int) -> None:
    """Refuse to train a batch normalisation on one sample at a time, whose variance is meaningless.

    Args:
        network: the network.
        frozen: its layers that stay as they are.
        samples: snippets in the smallest micro-batch of this process.
    """
    still = {id(layer) for module in frozen for layer in module.modules()}
    for name, layer in network.named_modules():
        if samples == 1 and isinstance(layer, nn.modules.batchnorm._BatchNorm) and id(layer) not in still:
            raise InputError(
                f"{name}: batch normalisation cannot be trained on a single sample, and the smallest micro-batch of a "
                "process has one: choose another batch or --micro-batch"
            )


def place(network: Network, device: torch.device, precision: str) -> None:
    """Move a network to the device, in the memory format and arithmetic that suit it."""
    network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def in_parallel(network: Network, world: World, compiled: bool) -> nn.Module:
    """What the training forward pass calls: the network, compiled if wanted, and shared among processes if several."""
    callable_network: nn.Module = torch.compile(network) if compiled else network  # type: ignore[assignment]
    if world.size > 1:
        devices = [world.device.index] if world.device.type == "cuda" else None
        callable_network = DistributedDataParallel(callable_network, device_ids=devices)
    return callable_network


def validation_results(heads: Sequence[str], totals: Tensor) -> dict[str, dict[str, float]]:
    """Mean loss, accuracy and top-5 accuracy of each head that has validation samples, from `validation_stats`."""
    return {
        name: {"loss": loss / count, "accuracy": correct / count, "top5": among_five / count}
        for name, (loss, correct, among_five, count) in zip(heads, totals.tolist(), strict=True)
        if count
    }
