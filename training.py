"""The training loop: `python training.py with method=adnet dataset=PHANTOM train.steps=300`."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import config
import models
from data.parts.plans import plan_of
from dataloaders.device_augmentation import Unchanged
from dataloaders.episodes import TrainingEpisodes, episode_loader, lost_workers
from dataloaders.flows import flows_folder, write_flows
from dataloaders.raw.regrid import observe
from dataloaders.training_set import TrainingData, training_data
from models.parts.base import FewShotMethod
from models.parts.recompute import recompute_blocks
from supervoxels.folder import complete
from util import checkpoints
from util.dataset import choose_fold
from util.episode import Episode
from util.errors import UserError
from util.names import stretches
from util.runs import folders
from util.runs.curves import PICTURES, Curves, curves, episode_picture
from util.runs.earlier import earlier_checkpoint
from util.runs.experiment import CommandLine, Interrupted, folder_of, plain
from util.runs.losses import LossesLog, Writer, csv_rows, sacred_scalars
from util.runs.processes import Ranks, join_ranks, mixed_precision, prepare_device, stop_signals
from util.runs.step import compiled, learning_rate, make_optimiser
from util.tables import text_table, write_csv
from util.volume import Geometry

log = logging.getLogger("training")
experiment = CommandLine("training", config)


@experiment.main
def train(_run) -> float:
    """Train one method on one fold; returns the mean loss of the last steps."""
    with stop_signals() as stop:
        options = plain(_run.config)
        device = prepare_device(options)
        ranks = join_ranks(device)
        folder = folder_of(_run)
        data = read_data(options)
        if data.removed:
            tell_removed(data.removed, options["protocol"], folder)
        options["model"] = models.fitted(options["model"], data.side)
        method = build_method(options, data).to(device)
        torch.manual_seed(options["seed"] + ranks.rank)  # dropout, different on every rank
        trainer = Trainer(method, data.episodes, options, about(options, data), folder, device, ranks)
        if options["resume"]:
            trainer.restore(folders.find_checkpoint(options["resume"], "resume"))
            _run.info["resumed_from"] = options["resume"]
        rows = [csv_rows(folder / "metrics.csv")] if folder else []
        with curves(folder, "training", options) as watched:
            loss = trainer.run([*rows, sacred_scalars(_run)], stop, watched, data.scans[0].geometry)
    if folder:
        leave_flows(method, data, options["episode"]["reach"], folders.latest_checkpoint(folder))
    return loss


@experiment.command
def flows(_run) -> None:
    """Write the flows of a trained registration network again: `python training.py flows with resume=RUN`."""
    options = plain(_run.config)
    path = folders.find_checkpoint(options["resume"], "resume")
    method = models.restore(checkpoints.load_checkpoint(path), path).method.to(prepare_device(options))
    if not leave_flows(method, read_data(options), options["episode"]["reach"], path):
        raise UserError(f"resume={path}: method={options['method']} registers no slices, so it has no flows")


def read_data(options: Mapping) -> TrainingData:
    """The scans and the episodes of a training."""
    dataset = config.DATASETS[options["dataset"]]
    fold = choose_fold(config.FOLDS, options["dataset"], options["fold"])
    method = models.method_class(options["method"])
    return training_data(options, dataset, fold, method.dims, method.published, complete)


def tell_removed(rows: Sequence[Mapping], protocol: str, folder: Path | None) -> None:
    """Log the slices that setting 2 removes, and write removed_slices.csv."""
    total, text = rows[-1], "setting 2, %s: %d of %d training slices removed, %d of the others show a test organ\n%s"
    log.info(text, protocol, total["removed"], total["slices"], total["leaking"], text_table(rows))
    if folder:
        write_csv(folder / "removed_slices.csv", rows)


def build_method(options: Mapping, data: TrainingData) -> FewShotMethod:
    """The method of the options, ready to train.

    New layers depend on the seed alone. The weights are those of `weights=`, or of another training of the same fold
    (`train.start`), of which nothing else is kept.
    """
    train = options["train"]
    begun = options["resume"] or train["start"]
    torch.manual_seed(options["seed"])
    weights = None if begun else options["weights"]
    method = models.build(
        options["method"], options["model"], encoder=options["encoder"], weights=weights, stride=options["stride"]
    )
    if train["start"] and not options["resume"]:
        start_from_earlier(method, options, data)
    # the layout that convolutions like best, on a CPU as on a GPU
    nn.utils.convert_conv2d_weight_memory_format(method, torch.channels_last)
    nn.utils.convert_conv3d_weight_memory_format(method, torch.channels_last_3d)
    method.train()
    if train["recompute"]:
        recompute_blocks(method.encoder)
    for part in method.encoder.modules() if train["frozen_norm"] else ():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()  # keeps the statistics of pretrained weights: two images are few to estimate them from
    return method


def start_from_earlier(method: nn.Module, options: Mapping, data: TrainingData) -> None:
    """Give the method the weights of the training behind `train.start`.

    Raises:
        UserError: it was of another fold, or its weights do not fit: a VISA may start from an ALPNet, whose layers it
            has, but nothing may start from another encoder.
    """
    dataset = config.DATASETS[options["dataset"]]
    path, content = earlier_checkpoint("train.start", options, data.numbers, dataset)
    try:
        checkpoints.load_weights(method, content, path)
    except UserError as error:
        mine, theirs = f"method={options['method']} encoder={options['encoder']}", content["config"]
        raise UserError(
            f"train.start={path}: a {theirs['method']} on {theirs['encoder']} cannot be the start of {mine}, "
            "its layers differ"
        ) from error
    log.info("starting from %s, %d steps of %s", path, content["step"], content["method"])


def about(options: Mapping, data: TrainingData) -> dict[str, Any]:
    """What a checkpoint says of the run beside its state: enough to build the method and prepare other scans."""
    plan = plan_of(options["dataset"], config.DATASETS[options["dataset"]], Path(options["data_root"]))
    geometries, values = zip(*((scan.geometry, scan.values) for scan in data.scans), strict=True)
    return {
        **{key: options[key] for key in ("method", "encoder", "stride")},
        "arguments": options["model"],
        "config": options,
        "intensities": data.mean_and_std,
        "preparation": observe(plan, geometries, data.side, values).as_plain(),
        "training_scans": data.numbers,
    }


def leave_flows(method: nn.Module, data: TrainingData, reach: int, checkpoint: Path) -> bool:
    """Write the flows between neighbouring slices for later trainings; False if the method cannot register slices."""
    register = getattr(method.eval(), "register", None)
    if register is None:
        return False
    write_flows(flows_folder(checkpoint, reach), data.scans, reach, register)
    return True


@dataclass
class Trainer:
    """A method, its optimiser and its episodes on one device.

    Attributes:
        method: on the device, in training mode.
        episodes: numbered.
        options: of the whole run, plain values, as `options` in config.py names them.
        about: what checkpoints say beside the state of the training.
        folder: of the run, for checkpoints; None writes nothing.
        device: where the method lives.
        ranks: the processes that train together; each takes its share of the episodes, gradients are averaged.
        step: updates made so far.
    """

    method: FewShotMethod
    episodes: TrainingEpisodes
    options: Mapping
    about: Mapping
    folder: Path | None
    device: torch.device
    ranks: Ranks
    step: int = 0

    def __post_init__(self) -> None:
        self.train = self.options["train"]
        self.optimiser = make_optimiser(self.method, self.train)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.train["precision"] == "float16")
        self.forward = compiled(self._forward, self.device) if self.train["compile"] else self._forward

    def run(
        self, writers: Sequence[Writer], stop: list, watched: Sequence[Curves] = (), geometry: Geometry | None = None
    ) -> float:
        """Train to the last step and return the last mean loss.

        Args:
            writers: of the losses.
            stop: becomes non-empty when the run is asked to stop.
            watched: writers that get the losses, too, and now and then a picture of an episode.
            geometry: of the scans, to show the pictures upright.

        Raises:
            Interrupted: after a stop; a checkpoint was written.
            UserError: the loss is not finite, a file cannot be written, or a process beside this one has ended.
        """
        steps, every = self.train["steps"], self.train["save_every"]
        losses_log = LossesLog([*writers, *(one.write for one in watched)], self.train["log_every"])
        shown = max(1, steps // PICTURES)
        bar = tqdm(
            self._batches(),
            initial=self.step,
            total=steps,
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file wants a line now and then, not a film
            disable=self.ranks.rank > 0,
        )
        with lost_workers():
            for batch in bar:
                episode = batch.to(self.device)
                losses = self.train_step(episode)
                self.step += 1
                if losses_log.add(self.step, losses, learning_rate(self.step, self.train), last=self.step == steps):
                    bar.set_postfix_str(losses_log.text, refresh=False)
                if watched and (self.step % shown == 0 or self.step == steps):
                    picture = episode_picture(episode, self.predicted, geometry)
                    for writer in watched:
                        writer.picture(self.step, "episode", picture)
                stopping = self.ranks.any(bool(stop), self.device) and self.step < steps
                if stopping or self.step % every == 0 or self.step == steps:
                    losses_log.check(self.step)
                    self.save()
                if stopping:
                    bar.close()
                    raise Interrupted(f"stopped at step {self.step} of {steps}; go on with resume={self.folder}")
        return losses_log.means.get("loss", float("nan"))

    def _batches(self) -> Iterator[Episode | Unchanged]:
        return episode_loader(
            self.episodes,
            first=self.step,
            last=self.train["steps"],
            batch_size=self.train["batch_size"],
            workers=self.options["workers"],
            rank=self.ranks.rank,
            ranks=self.ranks.count,
            pin_memory=self.device.type == "cuda",
        )

    def train_step(self, episode: Episode) -> dict[str, Tensor]:
        """One update; returns losses and diagnostics, detached, without waiting for the device."""
        self.method.progress = self.step / self.train["steps"]
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.train)
        loss, values, masks = self.forward(episode)
        self.scaler.scale(loss).backward()
        self.ranks.average_gradients(self.method.parameters())
        norm = self._gradient_norm()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.predicted = masks  # of the last step, for pictures
        return {"loss": loss.detach(), **values, "gradient_norm": norm}

    def _forward(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss; its parts, diagnostics and the share of pixels predicted, detached; the predicted masks."""
        with mixed_precision(self.train["precision"], self.device):
            output = self.method(episode)
        losses = {name: value.detach() for name, value in output.losses.items()}
        watched = {**output.diagnostics, "predicted": output.masks.mean(dtype=torch.float32)}
        return output.loss, {**losses, **watched}, output.masks

    def _gradient_norm(self) -> Tensor:
        """Norm of all gradients together, a scalar; where float16 overflows, and no update is made, zero."""
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in self.method.parameters() if p.grad is not None])
        return torch.where(norm.isfinite(), norm, 0.0) if self.scaler.is_enabled() else norm

    def save(self) -> None:
        """Write checkpoints/step_<n>.pt below the run's folder; every process must take part."""
        state = {
            "step": self.step,
            "model": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_states": self._random_states(),
        }
        if self.folder is not None:
            file = self.folder / "checkpoints" / f"step_{self.step:06d}.pt"
            checkpoints.save_checkpoint(file, {**self.about, **state})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint: weights, optimiser, step and the random state of every process.

        Raises:
            UserError: it was trained on other scans or by another number of processes, has all its steps already, or
                does not fit the method.
        """
        content = checkpoints.load_checkpoint(path)
        if content["training_scans"] != self.about["training_scans"]:
            raise UserError(
                f"{path}: was trained on scans {stretches(content['training_scans'])}, this run trains on others; "
                "resume with the same dataset and fold"
            )
        if content["step"] >= self.train["steps"]:
            raise UserError(f"{path}: has {content['step']} steps already; to go on, ask for more with train.steps=")
        states = content["random_states"]
        states = states if isinstance(states, list) else [states]  # as one process wrote it in older versions
        if len(states) != self.ranks.count:
            raise UserError(
                f"{path}: {len(states)} process(es) trained it and this run has {self.ranks.count}, so it would not go "
                f"on as it was; resume with as many: torchrun --nproc-per-node={len(states)}"
            )
        checkpoints.load_weights(self.method, content, path)
        self.optimiser.load_state_dict(content["optimiser"])
        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
        own = states[self.ranks.rank]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.device)
        log.info("resumed from %s at step %d", path, self.step)

    def _random_states(self) -> list[dict[str, Tensor]]:
        """The states of all processes, by rank."""
        own = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.device)
        gathered = {name: self.ranks.gather(state, self.device) for name, state in own.items()}
        return [{name: states[rank] for name, states in gathered.items()} for rank in range(self.ranks.count)]


if __name__ == "__main__":
    experiment.run_commandline(sys.argv)
