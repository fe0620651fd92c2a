"""One experiment from its layers to its results, on LightningCLI."""

import copy
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from framework.cli.group_table import group_facts, group_lines, group_list, write_groups
from framework.cli.layers import Layer
from framework.cli.network import check_network
from framework.cli.parser import Parser, explained_error, place_of
from framework.cli.progress import Progress
from framework.cli.resume import choose_start, ended_early, go_on, settle
from framework.cli.silence import quiet
from framework.cli.summary import (
    MOST_CLASSES,
    end_words,
    figure_lines,
    padding_lines,
    place_lines,
    recipe_line,
    setting_lines,
    trained_words,
)
from framework.data.check import check_splits
from framework.data.datamodule import VisionData
from framework.errors import ConfigError
from framework.length import run_length
from framework.prediction import PredictionWriter
from framework.registry import advertised
from framework.run.checkpoint import read_checkpoint
from framework.run.checkpoint_file import CheckpointFile
from framework.run.checkpoints import Checkpoints
from framework.run.finite_loss import FiniteLoss
from framework.run.folder import ConfigInCheckpoint, RunFolder
from framework.run.interruption import InterruptibleValidation, Interruption
from framework.run.metrics_record import MetricsRecord
from framework.run.monitors import check_monitors
from framework.run.processes import check_processes, trainer_strategy
from framework.run.unfinished_epoch import UnfinishedEpoch
from framework.tasks.base import Task
from framework.tracking.pictures import Pictures
from framework.transfer.unfreezing import unfreezing_among

RUN_OPTIONS: dict[str, dict[str, Any]] = {
    "resume": {
        "type": Literal["auto", "must", "never"],
        "default": "auto",
        "help": "Go on from the newest checkpoint in the run folder if there is one, if there must be one, or never.",
    },
    "on_nan": {
        "type": Literal["stop", "skip"],
        "default": "stop",
        "help": "What to do about a step whose loss is not finite.",
    },
    "allow_changes": {
        "nargs": "*",
        "type": str,
        "default": [],
        "help": "Keys in which this experiment may differ from that of the checkpoint it goes on from.",
    },
}


class ExperimentCLI(LightningCLI):
    """Lightning's CLI with any task, any data and any advertised plugin."""

    def __init__(
        self,
        name: str,
        layers: Sequence[Layer],
        plugins: Sequence[Path],
        started: list["ExperimentCLI"],
        interruption: Interruption | None = None,
        **options: Any,
    ) -> None:
        self.interruption = interruption or Interruption()
        self.experiment_name, self.layers, self.plugins = name, layers, plugins
        self.command = str(options["args"][0])
        self.started = started  # told to the caller, who cannot hold this object while it runs
        Parser.layers, Parser.adverts = layers, advertised(plugins)
        super().__init__(
            Task,
            VisionData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # tasks build their own parameter groups
            save_config_callback=None,  # the run folder keeps the config
            seed_everything_default=0,
            parser_kwargs={"allow_abbrev": False},
            **options,
        )

    # Parsing.

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """Build our parser in place of Lightning's."""
        parser = Parser(**options)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="An experiment; may be given several times."
        )
        return parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there
        """Name this command alone: a parser of each takes a twentieth of a second."""
        return {self.command: super().subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, and link what the data states into the model."""
        parser.add_argument(
            "--plugins", type=list[str] | str | None, help="Python files, or folders of such, that hold plugins."
        )
        for key, described in RUN_OPTIONS.items():
            parser.add_argument(f"--{key}", **described)
        parser.add_class_arguments(RunFolder, "run")
        parser.set_defaults({"run.name": self.experiment_name})
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.init_args.class_names", list, apply_on="instantiate")
        parser.link_arguments("data.multi_label", "model.init_args.multi_label", apply_on="instantiate")
        parser.link_arguments("data.ignore_index", "model.init_args.ignore_index", apply_on="instantiate")
        parser.link_arguments("data.depth_range", "model.init_args.depth_range", apply_on="instantiate")
        parser.link_arguments("data.channels", "model.init_args.backbone.init_args.in_channels", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Let the config given win over what a checkpoint remembers (Lightning's own lets the checkpoint win)."""

    # Building.

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what a constructor refuses is the user's to mend."""
        try:
            super().instantiate_classes()
        except Exception as error:
            explained = explained_error(error, self.plain_config(), self.layers)
            if explained is None or explained is error:
                raise
            raise explained from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with defaults chosen from the device, and the callbacks of the run folder."""
        config = self._get(self.config_init, "trainer", default={})
        self.run: RunFolder = self._get(self.config_init, "run")
        if self.subcommand == "fit":
            asked = self._get(self.config_init, "resume"), self._get(self.config_init, "ckpt_path")
            self.resume, self.given = settle(self.run, *asked)
        else:
            self.run.serve(str(self.subcommand))
        self.record = MetricsRecord(self.run.path)
        callbacks: list[Callback] = [
            ConfigInCheckpoint(self.plain_config()),
            FiniteLoss(self.run.path / "nonfinite", self.plain_config(), self._get(self.config_init, "on_nan")),
            self.record,
            Pictures(self.run.pictures),
            PredictionWriter(self.run.path / "predictions"),
        ]
        if self.subcommand == "fit":
            self.check_checkpointing(config)
            minutes, steps = self.run.checkpoint_minutes, self.run.checkpoint_steps
            self.checkpoints = Checkpoints(self.run.checkpoints, self.interruption, minutes, steps)
            validation = InterruptibleValidation(self.interruption, self.checkpoints.save_last)
            callbacks += [UnfinishedEpoch(), validation, self.checkpoints]
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(Progress())
        defaults: dict[str, Any] = {
            "logger": config.get("logger") or False,  # Lightning's own would write elsewhere
            "precision": config.get("precision") or default_precision(config.get("accelerator") or "auto"),
            "default_root_dir": str(self.run.path),
            "enable_model_summary": config.get("enable_model_summary") or False,  # `summary` says it in a line
            "use_distributed_sampler": False,  # our loaders know their rank
            **trainer_strategy(self._get(self.config, "trainer", default={}).get("strategy"), config.get("strategy")),
            "callbacks": [*given, *callbacks],
            **kwargs,
        }
        trainer = super()._instantiate_trainer({**config, **defaults}, [])
        self.interruption.take_over(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFile()
        return trainer

    def check_checkpointing(self, config: dict[str, Any]) -> None:
        """Refuse what would keep a run from writing checkpoints.

        Raises:
            ConfigError: The trainer is to write none.
        """
        for key, off in (("enable_checkpointing", False), ("barebones", True)):
            if config.get(key) is off:
                raise ConfigError(
                    f"{place_of(key, off, self.layers)}trainer.{key}: a run needs its checkpoints, to go on and to "
                    "test the best at its end: remove it (trainer.fast_dev_run tries a few batches and writes none)"
                )

    def plain_config(self) -> dict[str, Any]:
        """Return the resolved config of this command as plain types, without what is linked."""
        plain = copy.deepcopy(self._resolved)
        for key in ("config", "ckpt_path", "weights_only", "verbose", "resume", "allow_changes"):  # of one start
            plain.pop(key, None)
        plain["run"]["id"] = None  # whoever uses this config again makes a run of its own
        plain["plugins"] = [_from_here(path) for path in self.plugins] or None
        return plain

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        """The resolved config of this command as plain types; found once, as it takes a twentieth of a second."""
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        plain: dict[str, Any] = yaml.safe_load(text)
        return plain

    def _dump_config(self) -> None:
        """Give Lightning what a task's `save_hyperparameters` saves; its own would write the config out once more."""
        self.config_dump = copy.deepcopy(self._resolved)

    # Running.

    def check_monitors(self, callbacks: Iterable[Callback]) -> None:
        """Check that what callbacks monitor will be logged.

        Raises:
            ConfigError: It will not.
        """
        names = [*self.model.metric_names(), *self.model.train_metric_names()]
        check_monitors(callbacks, names, lambda monitor: place_of("monitor", monitor, self.layers))

    def open_door(self) -> None:
        """Check what callbacks monitor and every file of the data, then make the run folder."""
        config = self._get(self.config, "trainer", default={})
        check_processes(self.trainer, bool(config.get("sync_batchnorm")), self.run.is_found_again)
        self.model.check_command(str(self.subcommand), self.datamodule)
        self.check_monitors(self.trainer.callbacks)  # type: ignore[attr-defined]
        if self.subcommand != "fit":
            self.check_weights()
        if self.subcommand == "predict":
            check_splits({"predict": self.datamodule.predict_dataloader().dataset.samples}, rules="")
        else:
            for warning in self.datamodule.check_files()[:5]:
                print(f"warning: {warning}", file=sys.stderr)
        if self.subcommand == "fit":
            self.model.unfreezing = unfreezing_among(self.trainer.callbacks)  # type: ignore[attr-defined]
            self.count()
            self.model.check_data(self.datamodule)
            sizes = [self.datamodule.example(split)["image"].shape[-2:] for split in ("train", "val")]
            self.sizes = list(dict.fromkeys([*self.datamodule.stage_sizes(), *map(tuple, sizes)]))
            for size in self.sizes:
                self.model.try_size(*size)
        config = self.plain_config()
        self.started.append(self)
        if self.subcommand == "fit":
            self.begin(config)
        else:
            self.run.create(yaml.safe_dump(config, sort_keys=False))
        for logger in self.trainer.loggers:
            if hasattr(logger, "bind"):
                logger.bind(self.run.path, self.run.id, f"{self.run.name}/{self.run.id}")
            if self.subcommand == "fit" and self.start.is_own and hasattr(logger, "go_on"):
                logger.go_on()
            if hasattr(logger, "log_config"):
                logger.log_config(config if self.subcommand != "fit" else {**config, "groups": self._group_facts()})
        if self.trainer.is_global_zero:
            if self.subcommand == "fit" and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                write_groups(self._group_facts(), self.run.path / "groups.csv")
            print("\n".join([self.summary(), *self.start.lines] if self.subcommand == "fit" else [self.summary()]))

    def count(self) -> None:
        """Count the steps of the run, and see what is trained when."""
        self.length = run_length(self.trainer, self.datamodule, self.model.past)
        self.groups = group_list(self.model, self.length)

    def begin(self, config: dict[str, Any]) -> None:
        """Choose what the run goes on from, check that it may, and enter its folder."""
        self.start = choose_start(self.run, self.trainer, self.resume, self.given, config)
        self.config_init["fit"]["ckpt_path"] = None if self.start.checkpoint is None else str(self.start.checkpoint)
        if self.start.checkpoint is not None:
            allowed = self._get(self.config_init, "allow_changes")
            checkpoint, lines = go_on(self.start.checkpoint, self.trainer, self.model, config, allowed)
            self.start.lines += lines
            self.checkpoints.ends_at_once = self.start.is_own and ended_early(checkpoint, config)
            self.count()
        is_trial = bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        self.run.enter(yaml.safe_dump(config, sort_keys=False), is_trial)

    def check_weights(self) -> None:
        """Check that the checkpoint to be evaluated holds the weights of this network."""
        checkpoint = self._get(self.config_init, "ckpt_path")
        if checkpoint is not None and Path(checkpoint).is_file():
            check_network(read_checkpoint(Path(checkpoint)), self.model, str(checkpoint))

    def summary(self) -> str:
        """Say in a few lines what will run."""
        counts = {} if self.subcommand == "predict" else self.datamodule.counts
        lines = setting_lines(self.run.path, self.trainer, self.model, self.datamodule, counts)
        if self.subcommand == "fit":
            lines[1] += trained_words(self.groups)
            optimizer = self.plain_config()["model"]["init_args"]["optimizer"]
            recipe = recipe_line(self.trainer, self.model, self.datamodule, optimizer, self.length.steps)
            lines[3:3] = [recipe, *group_lines(self.groups, self.length), *padding_lines(self.model, self.sizes)]
        return "\n".join(lines)

    def _group_facts(self) -> list[dict[str, Any]]:
        return group_facts(self.groups, self.length)

    def before_fit(self) -> None:
        """Open the door."""
        self.open_door()

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        """Validate and test the best checkpoint, and say where everything is."""
        trainer = self.trainer
        self.interruption.stop_if_told(trainer)
        if trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        kept = [self.run.checkpoints / name for name in ("best.ckpt", "last.ckpt")]  # no best one without validation
        best = trainer.strategy.broadcast(next((path for path in kept if path.exists()), None))  # one answer for all
        epochs: Any = trainer.fit_loop.epoch_progress.current
        epochs.completed = epochs.processed  # Lightning counts a step of the loop later, which it did not take
        if not self.checkpoints.trained and trainer.is_global_zero:
            found = "already complete" if best is not None else "nothing to do: the checkpoint is already"
            at = f"{found} at epoch {trainer.current_epoch}" if trainer.global_step else "nothing was trained"
            print(f"{at}{end_words(trainer, self.checkpoints.ends_at_once)}")
        if best is None:
            return
        with quiet(trainer):
            for figures in trainer.validate(self.model, self.datamodule, str(best), verbose=False):
                self.record.record_final(figures)
            if "test" in self.datamodule.splits():
                for figures in trainer.test(self.model, self.datamodule, str(best), verbose=False):  # or of no batch
                    self.record.record_final(figures)
        self.report()

    def after_validate(self) -> None:
        """Keep the figures."""
        self.record.record_final(self.trainer.callback_metrics)
        self.report()

    after_test = after_validate

    def after_predict(self) -> None:
        """Say where the predictions are."""
        if self.trainer.is_global_zero:
            print(f"predictions  {self.run.path / 'predictions'}")

    def report(self) -> None:
        """Print the final figures and where everything is."""
        if self.trainer.is_global_zero:
            few = len(self.model.class_names) <= MOST_CLASSES
            print("\n".join([*figure_lines(self.record.final, few), *place_lines(self.run.path)]))


def _from_here(path: Path) -> str:
    """Write a path as seen from the working folder, if it lies in there."""
    whole, here = path.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def default_precision(accelerator: str) -> str:
    """Choose bf16 where the device has it, else float32."""
    on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
