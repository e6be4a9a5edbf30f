"""The training loop: `python training.py with method=adnet dataset=PHANTOM train.steps=300`."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from tqdm import tqdm

import config as tables
import models
from data.parts.plans import plan_of
from dataloaders.episodes import episode_loader
from dataloaders.flows import Carrier, make_flows
from dataloaders.raw.regrid import observe
from dataloaders.scans import Scan
from dataloaders.training_set import make_episodes, training_scans
from models.parts.recompute import recompute_blocks
from util import checkpoints
from util.dataset import choose_fold
from util.episode import Episode
from util.errors import UserError
from util.runs import folders
from util.runs.checks import builds_on
from util.runs.experiment import CommandLine, Interrupted, plain
from util.runs.losses import LossesLog
from util.runs.processes import join_ranks, prepare_device, stop_signals

log = logging.getLogger("training")
experiment = CommandLine("training", tables)


@experiment.main
def train(_run) -> float:
    """Train one method on one fold; returns the mean loss of the last steps."""
    with stop_signals() as stop:
        config = plain(_run.config)
        device = prepare_device(config)
        rank, ranks = join_ranks(device)
        folder = Path(_run.observers[0].dir) if _run.observers else None
        trainer = Trainer(config, folder, device, rank, ranks)
        if config["resume"]:
            trainer.restore(folders.checkpoint(config["resume"], "resume"))
            _run.info["resumed_from"] = config["resume"]
        return trainer.run(stop, _run.log_scalar)


class Trainer:
    """A method, its optimiser and its episodes on one device.

    Args:
        config: plain values, as `options` in config.py names them.
        folder: of the run, for checkpoints and metrics.csv; None writes nothing.
        device: where the method lives.
        rank: number of this process, `ranks`: how many there are (torchrun); each takes its share of the episodes and
            gradients are averaged.
    """

    def __init__(self, config: dict, folder: Path | None, device: torch.device, rank: int = 0, ranks: int = 1) -> None:
        self.config, self.folder, self.device, self.rank, self.ranks = config, folder, device, rank, ranks
        self.options = config["train"]
        self.step = 0
        self.dataset = tables.DATASETS[config["dataset"]]
        fold = choose_fold(tables.FOLDS, config["dataset"], config["fold"])
        self.scans, self.intensities = training_scans(config, self.dataset, fold)
        config["model"] = models.fitted(config["model"], lambda: self.scans[0].image.shape[-1])
        torch.manual_seed(config["seed"])  # new layers start from the seed alone
        self.method = models.build(
            config["method"],
            config["model"],
            encoder=config["encoder"],
            weights=None if config["resume"] or self.options["start"] else config["weights"],
            stride=config["stride"],
        )
        self.method.to(device).train()
        # the layout convolutions like best, on CPU as on GPU
        nn.utils.convert_conv2d_weight_memory_format(self.method, torch.channels_last)
        nn.utils.convert_conv3d_weight_memory_format(self.method, torch.channels_last_3d)
        if self.options["recompute"]:
            recompute_blocks(self.method.encoder)
        if self.options["frozen_norm"]:
            freeze_batch_norms(self.method.encoder)
        torch.manual_seed(config["seed"] + rank)  # dropout, different on every rank
        self.optimiser = make_optimiser(self.method, self.options)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.options["precision"] == "float16")
        plan = plan_of(config["dataset"], self.dataset, Path(config["data_root"]))
        # what predict.py must do to other scans
        self.preparation = observe(plan, [scan.geometry for scan in self.scans], self.scans[0].image.shape[2])
        if self.options["start"] and not config["resume"]:
            self._start_from(start_checkpoint(config))
        carrier = make_carrier(config, self.scans, device, rank)
        self.episodes = make_episodes(
            config, self.dataset, self.scans, self.method.dims, self.method.published, carrier, folder
        )

    def run(self, stop: list, log_scalar: Callable[[str, float, int], None]) -> float:
        """Train to the last step and return the last mean loss.

        Args:
            stop: becomes non-empty when the run is asked to stop.
            log_scalar: takes (name, value, step).

        Raises:
            Interrupted: after a stop; a checkpoint was written.
            UserError: the loss is not finite, or a file cannot be written.
        """
        steps, every = self.options["steps"], self.options["save_every"]
        losses_log = LossesLog(self.folder and self.folder / "metrics.csv", self.options["log_every"], log_scalar)
        bar = tqdm(
            self._batches(),
            initial=self.step,
            total=steps,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file wants a line now and then, not a film
            disable=self.rank > 0,
        )
        for episode in bar:
            losses = self.train_step(episode.to(self.device))
            self.step += 1
            if losses_log.add(self.step, losses, learning_rate(self.step, self.options), last=self.step == steps):
                bar.set_postfix_str(losses_log.text, refresh=False)
            stopping = self._agreed(bool(stop)) and self.step < steps
            if stopping or self.step % every == 0 or self.step == steps:
                losses_log.check(self.step)
                self.save()
            if stopping:
                bar.close()
                raise Interrupted(f"stopped at step {self.step} of {steps}; go on with resume={self.folder}")
        return losses_log.means.get("loss", float("nan"))

    def _batches(self) -> Iterator[Episode]:
        return episode_loader(
            self.episodes,
            first=self.step,
            last=self.options["steps"],
            batch_size=self.options["batch_size"],
            workers=self.config["workers"],
            rank=self.rank,
            ranks=self.ranks,
            pin_memory=self.device.type == "cuda",
        )

    def train_step(self, episode: Episode) -> dict[str, Tensor]:
        """One update; returns losses and diagnostics, detached, without waiting for the device."""
        self.method.progress = self.step / self.options["steps"]
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.options)
        precision = self.options["precision"]
        with torch.autocast(self.device.type, getattr(torch, precision), enabled=precision != "float32"):
            output = self.method(episode)
        self.scaler.scale(output.loss).backward()
        self._average_gradients()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        losses = {name: value.detach() for name, value in output.losses.items()}
        return {"loss": output.loss.detach(), **losses, **output.diagnostics}

    def save(self) -> None:
        """Write checkpoints/step_<n>.pt below the run's folder."""
        if self.folder is None:
            return
        config = self.config
        checkpoints.save_checkpoint(
            self.folder / "checkpoints" / f"step_{self.step:06d}.pt",
            {
                "method": config["method"],
                "arguments": config["model"],
                "encoder": config["encoder"],
                "stride": config["stride"],
                "config": config,
                "intensities": self.intensities,
                "preparation": self.preparation.as_plain(),
                "training_scans": [scan.number for scan in self.scans],
                "step": self.step,
                "model": self.method.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random_states": self._random_states(),
            },
        )

    def _start_from(self, path: Path) -> None:
        """Begin with the weights of another training of the same fold; nothing else of it is kept.

        Raises:
            UserError: it was another fold, or its weights do not fit: a VISA may start from an ALPNet, whose layers it
                has, but nothing may start from another encoder.
        """
        content, numbers = checkpoints.load_checkpoint(path), [scan.number for scan in self.scans]
        checkpoints.require_same_fold(content, path, self.config, numbers, self.dataset)
        try:
            checkpoints.load_weights(self.method, content, path)
        except UserError as error:
            mine = f"method={self.config['method']} encoder={self.config['encoder']}"
            theirs = f"{content['method']} on {content['encoder']}"
            raise UserError(
                f"train.start={path}: a {theirs} cannot be the start of {mine}, its layers differ"
            ) from error
        log.info("starting from %s, %d steps of %s", path, content["step"], content["method"])

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint: weights, optimiser, step and random states.

        Raises:
            UserError: it was trained on other scans, has all its steps already, or does not fit the method.
        """
        content = checkpoints.load_checkpoint(path)
        if content["training_scans"] != [scan.number for scan in self.scans]:
            raise UserError(
                f"{path}: was trained on scans {content['training_scans']}, this run trains on others; "
                "resume with the same dataset and fold"
            )
        if content["step"] >= self.options["steps"]:
            raise UserError(f"{path}: has {content['step']} steps already; to go on, ask for more with train.steps=")
        checkpoints.load_weights(self.method, content, path)
        self.optimiser.load_state_dict(content["optimiser"])
        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
        states = content["random_states"]
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)
        log.info("resumed from %s at step %d", path, self.step)

    def _random_states(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _average_gradients(self) -> None:
        if self.ranks > 1:
            for parameter in self.method.parameters():
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.ranks

    def _agreed(self, stop: bool) -> bool:
        """True on every process when any is asked to stop: none may wait for gradients that never come."""
        if self.ranks == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        distributed.all_reduce(flag)
        return flag.item() > 0


def make_optimiser(method: nn.Module, options: dict) -> torch.optim.Optimizer:
    """The optimiser of the `train.*` keys."""
    rates = {"lr": options["learning_rate"], "weight_decay": options["weight_decay"]}
    if options["optimiser"] == "adam":
        return torch.optim.Adam(method.parameters(), betas=(options["momentum"], 0.999), **rates)
    return torch.optim.SGD(method.parameters(), momentum=options["momentum"], **rates)


def learning_rate(step: int, options: dict) -> float:
    """The rate of update `step` (from 0): a decay at every k * decay_every but the last [training 2]."""
    every = options["decay_every"] or max(options["steps"] // 10, 1)
    milestones = max(options["steps"] // every - 1, 0)
    return options["learning_rate"] * options["decay"] ** min(step // every, milestones)


def freeze_batch_norms(module: nn.Module) -> None:
    """Keep the running statistics of pretrained weights: two images are few to estimate them from."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def make_carrier(config: dict, scans: list[Scan], device: torch.device, rank: int = 0) -> Carrier | None:
    """What carries superpixels to neighbouring slices: the flows of this fold's registration, made if missing.

    Raises:
        UserError: no registration network was trained for this fold, or one that saw what this training must not.
    """
    options = config["episode"]
    if "episode.registration" not in builds_on(config):
        return None
    path = registration_checkpoint(config)
    content = checkpoints.load_checkpoint(path)
    if content["method"] != "registration":
        raise UserError(f"episode.registration={path}: is a checkpoint of method={content['method']}, not registration")
    numbers = [scan.number for scan in scans]
    checkpoints.require_same_fold(content, path, config, numbers, tables.DATASETS[config["dataset"]])
    reach = 1 if options["carry"] == "chained" else options["reach"]
    folder = path.parent.parent / "flows" / f"{path.stem}_reach_{reach}"
    network = models.restore(content, path).to(device).eval()
    if rank == 0:
        make_flows(folder, scans, reach, network.register)
    if distributed.is_initialized():
        distributed.barrier()
    return Carrier(make_flows(folder, scans, reach, network.register), options["carry"])


def registration_checkpoint(config: dict) -> Path:
    """The checkpoint behind `episode.registration`."""
    named = config["episode"]["registration"]
    if named != "newest":
        return folders.checkpoint(named, "episode.registration")
    folder = folders.run_folder({**config, "method": "registration"})
    try:
        return folders.newest_finished(folder, lambda run: run["setting"] == config["setting"])
    except UserError as error:
        keys = " ".join(f"{key}={config[key]}" for key in ("dataset", "fold", "setting", "organs", "data_root", "runs"))
        raise UserError(
            f"{error}; superpixels are carried to neighbouring slices by a registration network of this fold: "
            f"python training.py with method=registration {keys}"
        ) from error


def start_checkpoint(config: dict) -> Path:
    """The checkpoint behind `train.start`: "newest" is the newest run of this fold that had no `train.start`."""
    start = config["train"]["start"]
    if start != "newest":
        return folders.checkpoint(start, "train.start")

    def first_stage(run: dict) -> bool:
        return not run["train"].get("start") and run["setting"] == config["setting"]

    return folders.newest_finished(folders.run_folder(config), first_stage)


if __name__ == "__main__":
    experiment.run_commandline(sys.argv)
