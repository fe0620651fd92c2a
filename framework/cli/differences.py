"""What differs between the experiment in a checkpoint and the one given, and whether a run may go on all the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from framework.errors import ConfigError, suggest

Verdict = Literal["silent", "said", "between epochs", "refused", "never"]

UNEQUAL = "from here on not bit-equal to an unbroken run"
OTHER_STEPS = "from here on an epoch has another number of steps, over which schedules are spread"
RULES: tuple[tuple[str, Verdict, str], ...] = (
    # A key with all that it holds, what is to be done about a difference there, and what follows from it.
    # The first that fits counts. `refused` gives way to --allow_changes, `never` does not.
    ("seed_everything", "refused", "every random draw would be another"),
    ("run", "silent", ""),
    ("plugins", "silent", ""),
    ("on_nan", "silent", ""),
    ("trainer.logger", "silent", ""),
    ("trainer.callbacks.*ProgressBar", "silent", ""),
    ("trainer.callbacks.*Monitor", "silent", ""),
    ("trainer.enable_*", "silent", ""),
    ("trainer.log_every_n_steps", "silent", ""),
    ("trainer.profiler", "silent", ""),
    ("trainer.plugins", "said", UNEQUAL),
    ("trainer.default_root_dir", "silent", ""),
    ("trainer.num_sanity_val_steps", "silent", ""),
    ("trainer.detect_anomaly", "silent", ""),
    ("trainer.max_epochs", "said", "the schedule now spans {given} epochs"),
    ("trainer.max_steps", "said", "the schedule spans the new length"),
    ("trainer.accelerator", "said", UNEQUAL),
    ("trainer.devices", "said", UNEQUAL),
    ("trainer.num_nodes", "said", UNEQUAL),
    ("trainer.strategy", "said", UNEQUAL),
    ("trainer.precision", "said", UNEQUAL),
    ("trainer.sync_batchnorm", "said", UNEQUAL),
    ("trainer.limit_train_batches", "between epochs", OTHER_STEPS),
    ("trainer.accumulate_grad_batches", "between epochs", OTHER_STEPS),
    ("trainer.overfit_batches", "between epochs", "other samples"),
    ("trainer", "said", ""),
    ("model.backbone.pretrained", "silent", ""),  # the checkpoint has the weights
    ("model.backbone.weights", "silent", ""),
    ("model.*.dropout", "said", ""),  # the same parameters at another rate
    ("model.*.drop_path", "said", ""),
    ("model.optimizer.amsgrad", "never", "its state does not fit"),
    ("model.optimizer.centered", "never", "its state does not fit"),
    ("model.optimizer.*", "said", ""),
    ("model.optimizer", "never", "its state does not fit"),
    ("model.schedule", "said", ""),
    ("model.backbone_lr_factor", "said", ""),
    ("model.layer_decay", "said", ""),
    ("model.learning_rates", "said", ""),
    ("model.freeze", "said", ""),
    ("model.loss", "said", ""),
    ("model.inference", "said", ""),
    ("model.crop", "said", ""),  # where and how depth is measured, and what predict writes
    ("model.alignment", "said", ""),
    ("model.intrinsics", "said", ""),
    ("model.score_threshold", "said", ""),
    ("model.head.score_threshold", "said", ""),  # what a detection head does with its outputs
    ("model.head.nms_iou", "said", ""),
    ("model.head.max_detections", "said", ""),
    ("model.head.topk_candidates", "said", ""),
    ("model.head.proposals", "said", ""),
    ("model.head.class_weights", "said", ""),
    ("model.channels_last", "said", UNEQUAL),
    ("model.compile", "said", UNEQUAL),
    ("model", "refused", "another network"),  # task, backbone, head, and whatever a task adds
    ("data.num_workers", "silent", ""),
    ("data.check", "silent", ""),
    ("data.check_cache", "silent", ""),
    ("data.predict_dir", "silent", ""),
    ("data.download", "silent", ""),
    ("data.batch_size", "between epochs", OTHER_STEPS),
    ("data.repeats", "between epochs", OTHER_STEPS),
    ("data.train", "between epochs", OTHER_STEPS),
    ("data.table", "between epochs", "other samples"),
    ("data.train_split", "between epochs", "other samples"),
    ("data.split_column", "between epochs", "other samples"),
    ("data.sampling", "between epochs", "other samples"),
    ("data.progressive", "between epochs", "other stages"),
    ("data.channels", "refused", "another network"),
    ("data.val_fraction", "refused", "the run would be validated on images that it was trained on"),
    ("data.val_count", "refused", "the run would be validated on images that it was trained on"),
    ("data.?*", "said", ""),  # paths, sizes and augmentation
    ("data", "refused", "another data set"),
)
IMAGES_A_STEP = ("data.batch_size", "data.progressive.batch_size", "trainer.accumulate_grad_batches")
MOST_LINES = 7  # of one message, beside its first and last


@dataclass(frozen=True, slots=True)
class Difference:
    """One key in which two experiments differ.

    Args:
        key: Dotted, without `init_args`; of a callback by its class name.
        trained: The value in the checkpoint; None also where it says nothing.
        given: The value now, likewise.
    """

    key: str
    trained: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.trained)} in the checkpoint, {_shown(self.given)} now"


@dataclass(frozen=True, slots=True)
class _Images:
    """How many images a step sees.

    Args:
        batches: Images of a batch over all processes, of each stage if they differ.
        gathered: Batches a step.
        staged: Whether the epochs are shared out among stages.
    """

    batches: tuple[int, ...]
    gathered: int
    staged: bool

    @property
    def step(self) -> tuple[int, ...]:
        """Images a step, of each stage if they differ."""
        return tuple(count * self.gathered for count in self.batches)


def check_changes(
    trained: dict[str, Any],
    given: dict[str, Any],
    allowed: Sequence[str],
    at_epoch_end: bool,
    processes: tuple[int, int] = (1, 1),
    source: str = "the checkpoint",
) -> list[str]:
    """Decide by `RULES` whether a run may go on from the checkpoint of an experiment with another.

    Args:
        trained: The resolved experiment of the checkpoint, as plain types.
        given: That of the command.
        allowed: Keys, with all that they hold, in which they may differ although a rule refuses it.
        at_epoch_end: Whether the checkpoint was written at the end of an epoch, so that no order is broken off.
        processes: How many processes trained the checkpoint, and how many are to go on.
        source: What to call the checkpoint.

    Returns:
        A line for each difference that is allowed, for people to see; none for what cannot change the result.

    Raises:
        ConfigError: A difference is refused, or `allowed` names no key.
    """
    allowed = [key.removeprefix("--").replace(".init_args", "") for key in allowed]
    _check_allowed(allowed, [*_keys(trained), *_keys(given)])
    images = _images(trained, processes[0]), _images(given, processes[1])
    said, refused, remedies = [], [], []
    for difference in [*differences(trained, given), *_more_processes(trained, given, processes)]:
        verdict, consequence = _judged(difference.key, at_epoch_end, *images)
        consequence = consequence.replace("{given}", _shown(difference.given))
        line = f"{difference}: {consequence}" if consequence else str(difference)
        if verdict == "said" or (verdict == "refused" and _within(difference.key, allowed)):
            said.append(line)
        elif verdict != "silent":
            refused.append(line)
            remedies += [difference.key] if verdict == "refused" else []
    if refused:
        raise ConfigError(_refusal(source, refused, remedies))
    return said


def is_same_training(trained: dict[str, Any], given: dict[str, Any]) -> bool:
    """Tell whether two experiments differ in nothing that could change a result."""
    return all(rule_of(difference.key)[0] == "silent" for difference in differences(trained, given))


def differences(trained: Any, given: Any, key: str = "") -> Iterator[Difference]:
    """Yield every key in which two experiments, or parts of them, differ.

    A class counts as the same where its name and package are: its module may have moved in a newer version. What a
    class is given is not compared with what another is given.
    """
    if trained == given:
        return
    if key == "trainer.callbacks":
        trained, given = _by_class(trained), _by_class(given)
    if _is_class(trained) and _is_class(given):
        if _name(trained) == _name(given):
            yield from differences(_arguments(trained), _arguments(given), key)
        else:
            yield Difference(key, trained, given)
    elif _is_group(trained) and _is_group(given):
        for name in dict.fromkeys([*trained, *given]):
            yield from differences(trained.get(name), given.get(name), f"{key}.{name}".lstrip("."))
    elif _are_classes(trained) and _are_classes(given) and [*map(_name, trained)] == [*map(_name, given)]:
        yield from differences(_by_class(trained), _by_class(given), key)
    else:
        yield Difference(key, trained, given)


def rule_of(key: str) -> tuple[Verdict, str]:
    """Return what is to be done about a difference in a key, and what follows from it."""
    for pattern, verdict, consequence in RULES:
        if fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*"):
            return verdict, consequence
    return "said", ""


def _judged(key: str, at_epoch_end: bool, trained: _Images, given: _Images) -> tuple[Verdict, str]:
    """Return what is to be done about a difference in a key at this place of a run, and what follows from it."""
    verdict, consequence = rule_of(key)
    if key in IMAGES_A_STEP and trained.step == given.step:
        consequence = "as many images a step"
        if trained == given:
            return "said", consequence
    if key == "trainer.max_epochs" and given.staged:
        verdict = "between epochs"
    if verdict != "between epochs":
        return verdict, consequence
    return ("said", consequence) if at_epoch_end else ("refused", "other samples, in the middle of an epoch")


# Experiments.


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and not _is_class(value) and all(isinstance(key, str) for key in value)


def _are_classes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_class, value))


def _name(value: Mapping[str, Any]) -> tuple[str, str]:
    """Return package and name of a class."""
    path = str(value["class_path"])
    return path.partition(".")[0], path.rpartition(".")[2]


def _arguments(value: Mapping[str, Any]) -> dict[str, Any]:
    return {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}


def _by_class(values: Any) -> Any:
    """Return classes by name, numbered from the second of a name on; anything else as it is."""
    values = values or []
    values = [values] if _is_class(values) else values
    if not _are_classes(values):
        return values
    named: dict[str, Any] = {}
    for value in values:
        name = _name(value)[1]
        count = sum(key.partition("#")[0] == name for key in named)
        named[f"{name}#{count + 1}" if count else name] = value
    return named


def _shown(value: Any) -> str:
    """Write a value as an experiment would, in 60 characters at most; of a class its name."""
    if _is_class(value):
        return _name(value)[1]
    if _are_classes(value) and value:
        return _shown(f"[{', '.join(map(_shown, value))}]")
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(config: Any, key: str = "") -> Iterator[str]:
    """Yield every dotted key of an experiment, those that hold others too."""
    if key:
        yield key
    inside = _by_class(config) if key == "trainer.callbacks" else _arguments(config) if _is_class(config) else config
    if _is_group(inside):
        for name, value in inside.items():
            yield from _keys(value, f"{key}.{name}".lstrip("."))


def _within(key: str, allowed: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in allowed)


def _check_allowed(allowed: Sequence[str], known: Sequence[str]) -> None:
    for key in allowed:
        if key not in known:
            hint = suggest(key, known)
            raise ConfigError(f"--allow_changes: the experiment has no {key}{f'; {hint}' if hint else ''}")


# Images a step.


def _images(config: Mapping[str, Any], processes: int) -> _Images:
    data = _arguments(config.get("data") or {})
    stages = _arguments(data.get("progressive") or {}).get("batch_size")
    sizes = [data.get("batch_size") or 0, *(stages if isinstance(stages, list) else [])]
    gathered = (config.get("trainer") or {}).get("accumulate_grad_batches") or 1
    return _Images(tuple(size * processes for size in sizes), gathered, bool(data.get("progressive")))


def _more_processes(
    trained: Mapping[str, Any], given: Mapping[str, Any], processes: tuple[int, int]
) -> list[Difference]:
    """Return the batch size as a difference where another number of processes alone makes batches larger or smaller."""
    sizes = [_arguments(config.get("data") or {}).get("batch_size") for config in (trained, given)]
    if processes[0] == processes[1] or sizes[0] != sizes[1] or sizes[0] is None:
        return []
    return [Difference("data.batch_size", *(f"{sizes[0]} on each of {count}" for count in processes))]


# Messages.


def _refusal(source: str, refused: Sequence[str], remedies: Sequence[str]) -> str:
    more = [f"... and {len(refused) - MOST_LINES + 1} more"] if len(refused) > MOST_LINES else []
    allow = f", or --allow_changes {' '.join(remedies)}" if len(remedies) == len(refused) else ""
    return "\n".join(
        [
            f"--ckpt_path: {source}: this run was another experiment:",
            *(refused[: MOST_LINES - 1] if more else refused),
            *more,
            f"give the same values, or begin a new run with another --run.id or none{allow}",
        ]
    )
