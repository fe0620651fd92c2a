"""What Lightning leaves out of a checkpoint: the figures of an epoch so far, a validation still due, an early end."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from framework.run.interruption import validation_follows

KEY = "unfinished_epoch"  # of a checkpoint
GATHERED = "gradients_gathered"  # of a checkpoint: for the next step, and they are not in it
KEPT = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
"""What stays of how a figure is logged, in plain types."""


class UnfinishedEpoch(Callback):
    """Makes a run that goes on from within an epoch end it with the figures of one that was never stopped.

    Lightning (2.6) begins the means of an epoch anew after a resume, forgets the figures of the last validation, and
    leaves out a validation that was due after the batch at which the checkpoint was written, or had begun.

    Under `max_steps` it also takes an epoch that has ended for one to go on with, and counts it twice. An epoch that
    the end of the run cut short has ended: a run that goes on, with more steps, begins the next.
    """

    def __init__(self) -> None:
        self._known: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let Lightning count epochs under `max_steps` too."""
        trainer.fit_loop._iteration_based_training = _never  # type: ignore[method-assign]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the figures, and note a validation that is still due, gathered gradients, and the end of an epoch."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        ended = _epoch_ended(trainer)
        checkpoint[GATHERED] = not ended and trainer.fit_loop._should_accumulate()
        if ended:
            _begin_next_epoch(checkpoint["loops"]["fit_loop"])
        if _validation_due(trainer):
            _note_validation(checkpoint["loops"]["fit_loop"], begun=trainer.validating)
        figures = {name: value.detach().clone() for name, value in trainer.callback_metrics.items()}
        gathered = {key: _gathered(trainer, metric) for key, metric in _means(trainer).items()}
        checkpoint[KEY] = {"figures": figures, "gathered": gathered}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was gathered until training starts."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._known = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the figures of the checkpoint."""
        if self._known is None:
            return
        trainer._logger_connector._callback_metrics.update(self._known["figures"])
        results = trainer.fit_loop.epoch_loop._results
        for key, state in self._known["gathered"].items():
            results[key] = _restored(state, trainer).to(pl_module.device)
        if self._known["gathered"]:
            trainer._logger_connector._first_loop_iter = True  # else the next batch, taken for the first, resets them
        self._known = None


def _never() -> bool:
    return False


def _epoch_ended(trainer: Trainer) -> bool:
    """Tell whether no epoch is under way."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return bool(epochs.processed == epochs.ready)


def _begin_next_epoch(loops: dict[str, Any]) -> None:
    """Let the state of our loader say what comes after the epoch, of which batches may be left."""
    for state in loops["state_dict"].get("combined_loader", ()):
        if isinstance(state, dict) and state.get("batch"):
            state |= {"epoch": state["epoch"] + 1, "batch": 0}


def _validation_due(trainer: Trainer) -> bool:
    """Tell whether a validation comes before the next training batch, or is under way."""
    loop = trainer.fit_loop.epoch_loop
    if trainer.validating:
        return bool(loop.val_loop.batch_progress.current.completed < sum(trainer.num_val_batches))
    batches: Any = loop.batch_progress.current
    after_batch = batches.processed == batches.completed + 1
    return bool(after_batch and validation_follows(trainer))


def _note_validation(loops: dict[str, Any], begun: bool) -> None:
    """Let the state of the loops say that the batch is done and a validation has begun, at its first batch."""
    for counts in (loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]):
        counts["completed"] = counts["processed"]
    progress = loops["epoch_loop.val_loop.batch_progress"]
    own = progress["current"]["completed"] if begun else 0  # until it begins, `current` is of the one before
    before = progress["total"]["completed"] - own  # earlier validations of this epoch
    for counts, done in ((progress["total"], before), (progress["current"], 0)):
        counts |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    progress["is_last_batch"] = False


def _means(trainer: Trainer) -> dict[str, _ResultMetric]:
    """Return what the training batches of an unfinished epoch gather, by key."""
    unfinished = {} if _epoch_ended(trainer) else trainer.fit_loop.epoch_loop._results
    return {
        key: metric
        for key, metric in unfinished.items()
        if metric.is_tensor and not metric.has_reset and metric.meta.sync.group is None
    }


def _gathered(trainer: Trainer, metric: _ResultMetric) -> dict[str, Any]:
    """Return one of them as plain types; what is meant over all processes, summed up over them."""
    meta, shared = metric.meta, metric.meta.sync.should
    state: dict[str, Any] = {"value": metric.value.detach().clone(), "reduce": meta.reduce_fx.__name__}
    state |= {"shared": shared, "rank_zero_only": meta.sync.rank_zero_only}
    if meta.is_mean_reduction:
        state["size"] = torch.as_tensor(metric.cumulated_batch_size).clone()
    if shared and trainer.world_size > 1:
        how = "sum" if meta.is_mean_reduction else state["reduce"]
        state |= {name: trainer.strategy.reduce(v, reduce_op=how) for name, v in state.items() if isinstance(v, Tensor)}
    return state | {name: getattr(meta, name) for name in KEPT}


def _restored(state: dict[str, Any], trainer: Trainer) -> _ResultMetric:
    meta = _Metadata(reduce_fx=state["reduce"], **{name: state[name] for name in KEPT})
    meta.sync = _Sync(_should=state["shared"], fn=trainer.strategy.reduce, rank_zero_only=state["rank_zero_only"])
    metric = _ResultMetric(meta, is_tensor=True)
    first = trainer.is_global_zero or not state["shared"] or state["reduce"] in ("min", "max")
    metric.value = state["value"] if first else torch.zeros_like(state["value"])
    if "size" in state:
        metric.cumulated_batch_size = state["size"] if first else torch.zeros_like(state["size"])
    metric._update_count, metric._computed = 1, None
    return metric
