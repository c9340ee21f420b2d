# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A training run: optimiser, checkpoints and logs. The loop and the loss stay in the script."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    KwargsHandler,
    ProjectConfiguration,
    broadcast_object_list,
)
from tqdm.auto import tqdm

from diffusers.training_utils import EMAModel

from .checkpoints import register_model_hooks, register_schedule, resume_checkpoint, save_checkpoint
from .data.stream import ImageStream, LatentStream, StreamedCaptions
from .engines import GradientGuard, autocast, check_environment, configure_engine, engine, finish
from .keyed import Draws, KeyedBatchSampler
from .resume import RunIdentity, check_output_dir
from .schedule import get_lr_scheduler


class Termination:
    """
    Note a SIGTERM, so that a run can save and leave between two steps. Batch systems send it before they kill a job.

    Args:
        accelerator (`Accelerator`):
            The accelerator of the run.
    """

    EXIT_CODE = 128 + signal.SIGTERM

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.noted = False
        self._previous = None
        if threading.current_thread() is threading.main_thread():  # no other thread may set a handler
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_):
        self.noted = True

    def __call__(self) -> bool:
        """Return whether any process of the run has got the signal; every process must ask at the same step."""
        if self.accelerator.num_processes == 1:
            return self.noted
        noted = torch.tensor(float(self.noted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(noted, "sum"))

    def leave(self, path: str):
        """Exit with the code of a process that a SIGTERM ends, and say where the run was saved."""
        self.restore()
        self.accelerator.print(f"SIGTERM: {path} is saved; go on with `--resume_from_checkpoint latest`.")
        sys.exit(self.EXIT_CODE)

    def restore(self):
        """Restore the previous handler of the signal."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


def make_accelerator(args, kwargs_handlers: list[KwargsHandler] | None = None) -> Accelerator:
    """
    Make the accelerator of a run from the options of a script.

    They come before the variables of accelerate (`ACCELERATE_...`). The precision is that of the environment if `--mixed_precision`
    is left out.

    Raises:
        ValueError: If a variable asks for what the scripts do not support, see [`check_environment`].
    """
    check_environment(args)
    return Accelerator(
        # With `gradient_accumulation_steps=`, a variable of that name would win
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.gradient_accumulation_steps),
        mixed_precision=args.mixed_precision,
        kwargs_handlers=kwargs_handlers,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, os.path.join(args.output_dir, "logs")),
    )


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """List the parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_adamw(model: torch.nn.Module, learning_rate: float, args) -> torch.optim.AdamW:
    """Make the AdamW of a run from the options of [`add_adam_options`]."""
    return torch.optim.AdamW(
        trainable(model),
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
        fused=True,
    )


class Run:
    """
    A training run under any engine of accelerate: optimiser, averaged weights, schedule, checkpoints, log, and
    the exit at a SIGTERM.

    It is no trainer. The loop stays in the script, and the script makes the loss:

        run = Run(accelerator, args, model, optimizer, ...)
        run.resume()
        for batch, draws in run.batches(loader, run.sampler(len(dataset))):
            with run.autocast():
                loss = ...
            run.take(loss)

    Args:
        accelerator (`Accelerator`):
            The accelerator, see [`make_accelerator`].
        args ([`Options`]):
            The options of the script; a resume compares them with those of the checkpoint.
        model (`torch.nn.Module`), optimizer (`torch.optim.Optimizer`):
            The model, on the device of the accelerator, and the optimizer of its trained parameters.
        batch_size (`int`):
            Samples of each process in a micro-batch.
        max_train_steps (`int`), logging_steps (`int`), validation_steps (`int`):
            In optimizer steps.
        component (`str`, *optional*):
            The model's name in the pipeline, under which checkpoints hold it. Omitted: accelerate saves the model.
        title (`str`, defaults to `""`):
            The name of the progress bar, and the group of the logged values.
        tracker (`str`, defaults to `"train"`):
            The project name of the trackers.
        prefix (`str`, defaults to `""`):
            What the names of checkpoints begin with.
        ema_decay (`float`, *optional*):
            The decay of the averaged weights. Omitted: no averages.
        images (`dict`, *optional*):
            The set, see [`describe_images`]. Checkpoints keep it, and a resume refuses another one. Omitted: not compared.

    Attributes:
        model (`torch.nn.Module`): The model as the engine has wrapped it.
        step (`int`): The number of optimizer steps taken.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int,
        max_train_steps: int,
        logging_steps: int,
        validation_steps: int,
        component: str | None = None,
        title: str = "",
        tracker: str = "train",
        prefix: str = "",
        ema_decay: float | None = None,
        images: dict | None = None,
    ):
        self.accelerator, self.args, self.bare_model = accelerator, args, model
        self.batch_size, self.max_train_steps = batch_size, max_train_steps
        self.logging_steps, self.validation_steps = logging_steps, validation_steps
        self.title, self.tracker, self.prefix = title, tracker, prefix
        (name,) = broadcast_object_list([RunIdentity().run])  # one for all processes
        self.identity = RunIdentity(images, name)
        self.engine, self.device, self.model_class = engine(accelerator), accelerator.device, type(model)
        self.accumulation, self.ema_decay = args.gradient_accumulation_steps, ema_decay
        self.learning_rate = optimizer.defaults["lr"]
        self.global_batch_size = batch_size * self.accumulation * accelerator.num_processes
        # Not passed to `accelerator.prepare`: it counts optimizer steps, whatever the number of processes
        self.lr_scheduler = get_lr_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, max_train_steps)
        configure_engine(accelerator, batch_size, self.accumulation, args.max_grad_norm)

        # The averages copy the weights before `prepare` under DeepSpeed, which may shard them or halve their precision, and
        # after it under FSDP2, which replaces them. Under ZeRO, `foreach` would gather all of them, and as many differences.
        average = partial(
            EMAModel, decay=ema_decay, model_cls=type(model), model_config=getattr(model, "config", None)
        )
        average = partial(average, foreach=not self.engine.startswith("zero"))
        ema = average(trainable(model)) if ema_decay is not None and self.engine != "fsdp" else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if ema_decay is not None and self.engine == "fsdp":
            ema = average(trainable(model))
        if ema is not None:
            ema.to(self.device)
        self.ema, self.parameters = ema, trainable(model)

        if component is not None:
            register_model_hooks(accelerator, model, ema, component)
        register_schedule(accelerator, self.lr_scheduler)
        self.guard = GradientGuard(accelerator)
        self.step = self.first_step = self.logged_step = 0
        self.mean_loss, self.logged_steps = float("nan"), 0
        self._running = torch.zeros(2, device=self.device)  # the sum of the finite losses, and their number

    # ------------------------------------------------------------------------------------------------------- before

    def resume(self):
        """Go on from the checkpoint that `--resume_from_checkpoint` names, if there is one; see [`check_output_dir`]."""
        check_output_dir(self.args, self.identity.images, [self.prefix])
        if self.args.resume_from_checkpoint:
            settings = self.args, self.global_batch_size, self.prefix, self.identity
            self.step = resume_checkpoint(self.accelerator, *settings)
        self.first_step = self.logged_step = self.step

    def sampler(self, num_samples: int) -> KeyedBatchSampler:
        """Make the sampler of the steps to come."""
        return KeyedBatchSampler(
            num_samples,
            self.batch_size,
            self.args.seed,
            range(self.step, self.max_train_steps),
            self.accumulation,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.args.random_flip,
        )

    def loader(self, dataset, sampler: KeyedBatchSampler) -> torch.utils.data.DataLoader:
        """Make the loader of a data set whose `__getitems__` returns whole batches."""
        return torch.utils.data.DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def stream(self, images: ImageStream, vae, captions: StreamedCaptions | None = None) -> LatentStream:
        """Make the endless batches of a stream. Call it before [`~Run.resume`]: a checkpoint holds the position of the stream."""
        latents = LatentStream(
            images,
            vae.to(self.device) if vae is not None else None,
            self.batch_size,
            self.args.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.args.random_flip,
            self.args.shuffle_buffer_size,
            self.args.max_skipped_images,
            self.args.dataloader_num_workers,
            self.device,
            captions,
        )
        latents.register(self.accelerator)
        return latents

    def autocast(self):
        """The context of mixed precision, for the loss."""
        return autocast(self.accelerator)

    # ----------------------------------------------------------------------------------------------------- the loop

    def batches(
        self, loader: Iterable, sampler: KeyedBatchSampler, validate: Callable[[], None] | None = None
    ) -> Iterator[tuple[dict, Draws]]:
        """
        Yield every micro-batch with its draws. The script makes the loss of each and hands it to [`~Run.take`].

        After the last micro-batch of a step this logs, saves and validates. At a SIGTERM it saves and exits.

        Args:
            loader (`Iterable`):
                The batches; it may be endless.
            sampler ([`KeyedBatchSampler`]):
                The sampler of the steps, see [`~Run.sampler`]. It also keys the draws.
            validate (`Callable`, *optional*):
                Called every `validation_steps` and after the last step, on the main process only; where the weights are sharded,
                on all processes.
        """
        if self.args.report_to:
            self.accelerator.init_trackers(self.tracker, config={k: str(v) for k, v in vars(self.args).items()})
        self._termination = Termination(self.accelerator)
        self._progress = tqdm(
            total=self.max_train_steps,
            initial=self.step,
            desc=self.title or None,
            disable=not self.accelerator.is_local_main_process,
            smoothing=0.05,
        )
        self._started = self._since = time.monotonic()
        for number, batch in enumerate(islice(loader, len(sampler))):
            micro_step = number % self.accumulation
            with self.accelerator.accumulate(self.model):
                yield batch, Draws(sampler.generators(self.step, micro_step), self.device)
            if micro_step == self.accumulation - 1:
                self._end_step(validate)
        self._progress.close()
        self._termination.restore()
        self.minutes = (time.monotonic() - self._started) / 60

    def take(self, loss: torch.Tensor):
        """Back-propagate the loss of a micro-batch, and after the last one of a step clip the gradient and take the step."""
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.guard.clip(self.model.parameters(), self.args.max_grad_norm, self.optimizer, self.step + 1)
        self.optimizer.step()  # accelerate skips both until the last micro-batch of a step
        self.optimizer.zero_grad()
        loss = loss.detach()
        is_finite = loss.isfinite()
        self._running += torch.stack([torch.where(is_finite, loss, 0.0), is_finite.float()])

    def _end_step(self, validate):
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.step += 1
        self._progress.update()
        is_end = self.step == self.max_train_steps
        if self.step % self.logging_steps == 0 or is_end:
            self._log()
        is_last = is_end or self._termination()
        if self.step % self.args.checkpointing_steps == 0 or is_last:
            path = self.save()
        if is_last and not is_end:
            self._termination.leave(path)
        # All processes must run a sharded model together
        is_here = self.accelerator.is_main_process or self.engine in ("fsdp", "zero3")
        if validate is not None and is_here and (self.step % self.validation_steps == 0 or is_end):
            started = time.monotonic()
            validate()
            self._since += time.monotonic() - started  # leave the validation out of the logged speed

    def save(self) -> str:
        """Save a checkpoint, on every process, and return its path."""
        settings = self.global_batch_size, self.prefix, self.identity
        return save_checkpoint(self.accelerator, self.args, self.step, *settings)

    def _log(self):
        self.logged_steps, self.logged_step = self.step - self.logged_step, self.step
        total, number = self.accelerator.reduce(self._running, "sum").tolist()
        self.mean_loss = total / number if number else float("nan")
        rate = self.logged_steps * self.global_batch_size / (time.monotonic() - self._since)
        self._since, self._running = time.monotonic(), torch.zeros(2, device=self.device)
        self._progress.set_postfix(loss=f"{self.mean_loss:.4f}", images_per_second=f"{rate:.0f}")
        values = {"loss": self.mean_loss, "lr": self.lr_scheduler.get_last_lr()[0], "images_per_second": rate}
        values["grad_norm"] = self.guard.grad_norm.item()
        values["skipped_steps"] = self.guard.skipped / (self.step - self.first_step)
        self.log(values)

    def log(self, values: dict[str, float]):
        """Log values to the trackers, under the title of the run."""
        group = f"{self.title}/" if self.title else ""
        self.accelerator.log({group + k: v for k, v in values.items()}, step=self.step)

    def write(self, text: str):
        """Print a line above the progress bar."""
        self._progress.write(text)

    # -------------------------------------------------------------------------------------------------------- after

    def finish(self, keep: bool = True) -> torch.nn.Module | None:
        """
        Return the trained model with its averaged weights, ready for inference, and close the trackers.

        Args:
            keep (`bool`, defaults to `True`):
                Whether this process needs the model. Without it, `None` is returned where the weights are sharded.
        """
        model = finish(self.accelerator, self.bare_model, self.model_class, self.ema, keep)
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:  # not `end_training`: another run may follow
            tracker.finish()
        return model.eval() if model is not None else None

    def facts(self, network: dict[str, object]) -> dict[str, object]:
        """
        Describe the run for a model card.

        Args:
            network (`dict[str, object]`):
                The facts of the network, which come first.
        """
        facts = network | {
            "steps": f"{self.step:,}",
            "global batch": self.global_batch_size,
            "learning rate": f"{self.learning_rate:g}, {self.args.lr_scheduler}",
            "EMA decay": "none" if self.ema_decay is None else self.ema_decay,
            "mixed precision": self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes,
            "engine": self.engine,
        }
        if self.took_steps:
            steps = f"steps {self.first_step + 1} to {self.step}"
            facts |= {
                f"training loss, mean of the last {self.logged_steps} steps": f"{self.mean_loss:.4f}",
                "steps skipped, their gradient not finite": f"{self.guard.skipped} of {steps}",
                "wall time": f"{self.minutes:.1f} min for {steps}",
            }
        return facts

    @property
    def took_steps(self) -> bool:
        """Whether the run took a step since it started or resumed."""
        return self.step > self.first_step

    def kept_facts(self, network: dict[str, object]) -> dict[str, object]:
        """
        Return the facts of the run that took the last step.

        `<prefix>training.json` keeps them for a later run that resumes and takes no step.
        """
        path, facts = os.path.join(self.args.output_dir, f"{self.prefix}training.json"), self.facts(network)
        if self.took_steps and self.accelerator.is_main_process:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(facts, file, indent=1)
        elif not self.took_steps and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                facts = json.load(file)
        return facts


def _as_it_is(batch):
    return batch
