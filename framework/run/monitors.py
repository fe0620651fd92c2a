"""Whether what callbacks monitor will ever be logged."""

from collections.abc import Callable, Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from framework.errors import ConfigError, suggest

_BETTER = {"score": "max", "loss": "min"}


def check_monitors(
    callbacks: Iterable[Callback], names: list[str], place: Callable[[str], str] = lambda monitor: ""
) -> None:
    """Check that what callbacks monitor will be logged.

    Args:
        callbacks: The callbacks.
        names: What training and validation will log.
        place: Tells where a monitor is configured.

    Raises:
        ConfigError: It will not, with the nearest name; or the callback has the wrong idea of what is better.
    """
    callbacks = list(callbacks)
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)  # logs lr, lr/head/decay, ...
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        mode, better = getattr(callback, "mode", None), _BETTER.get(str(monitor).rpartition("/")[2])
        if better is not None and mode is not None and mode != better:
            raise ConfigError(
                f"{place(str(monitor))}{type(callback).__name__} takes {monitor} for better when it is "
                f"{'lower' if mode == 'min' else 'higher'}: set mode: {better}"
            )
        if isinstance(monitor, str) and monitor not in names and not (rates and monitor.startswith("lr")):
            raise ConfigError(
                f"{place(monitor)}{type(callback).__name__} monitors '{monitor}', which is never logged; "
                f"{suggest(monitor, names)}"
            )
