"""Whether what callbacks monitor will ever be logged."""

from collections.abc import Callable

from lightning.pytorch import Trainer

from framework.errors import ConfigError, suggest

_BETTER = {"score": "max", "loss": "min"}


def check_monitors(trainer: Trainer, names: list[str], place: Callable[[str], str] = lambda monitor: "") -> None:
    """Check that what callbacks monitor will be logged.

    Args:
        trainer: The trainer with its callbacks.
        names: What validation will log.
        place: Tells where a monitor is configured.

    Raises:
        ConfigError: It will not, with the nearest name; or the callback has the wrong idea of what is better.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        mode, better = getattr(callback, "mode", None), _BETTER.get(str(monitor).rpartition("/")[2])
        if better is not None and mode is not None and mode != better:
            raise ConfigError(
                f"{place(str(monitor))}{type(callback).__name__} takes {monitor} for better when it is "
                f"{'lower' if mode == 'min' else 'higher'}: set mode: {better}"
            )
        if isinstance(monitor, str) and not monitor.startswith(("train/", "lr")) and monitor not in names:
            raise ConfigError(
                f"{place(monitor)}{type(callback).__name__} monitors '{monitor}', which is never logged; "
                f"{suggest(monitor, names)}"
            )
