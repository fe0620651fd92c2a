"""The Weights & Biases logger that never stops, blocks or slows training, and never prompts."""

import os
import socket
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from framework.errors import ConfigError, UserError, suggest

STEP = "trainer/global_step"  # the x-axis that Lightning defines for every metric
MODES = {mode: mode for mode in ("online", "offline", "disabled", "shared")} | {"run": "online", "dryrun": "offline"}


class WandB(WandbLogger):
    """Weights & Biases: online when logged in and reachable, else offline, with one line saying which.

    The environment's `WANDB_*` variables are honoured; `WANDB_MODE` wins over `mode`.

    Args:
        project: Project of the run; without one, `WANDB_PROJECT` or "vision-plugin-framework".
        name: Display name; without one, that of the run folder.
        id: Identity of the run; the same id continues the same run. Without one, that of the run folder.
        entity: User or team that owns the run; without one, the account's default.
        tags: Labels to filter runs by.
        group: Name under which runs are shown together.
        notes: A longer description.
        mode: "auto" and "online" go online only if an API key is found and the server answers, else
            offline; "disabled" records nothing.
        save_dir: Folder for the run's files; without one, the run folder, or else the working folder.
        log_model: Upload the checkpoints at the end of training.
        finish_timeout: Seconds to wait for uploads at the end; `wandb sync` uploads the rest later.

    Raises:
        ConfigError: W&B does not allow such a project, id or tag, or `WANDB_MODE` is no mode.
        UserError: The folder cannot be written (by `bind`, or when the run starts).
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        id: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        notes: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        save_dir: str | os.PathLike[str] | None = None,
        log_model: bool = False,
        finish_timeout: float = 120.0,
    ) -> None:
        _check_names(project, id, tags)
        super().__init__(
            project=project or os.environ.get("WANDB_PROJECT", "vision-plugin-framework"),
            name=name,
            id=id,
            save_dir=save_dir,  # type: ignore[arg-type]  # Lightning handles None but does not say so
            log_model=log_model,
            entity=entity,
            tags=tags,
            group=group,
            notes=notes,
        )
        del self._wandb_init["anonymous"]  # Lightning passes it, W&B warns of it
        self._mode = mode
        self._finish_timeout = finish_timeout
        self._last_step = 0
        self._goes_on = False
        self._complained: set[str] = set()

    def bind(self, folder: Path, run_id: str, run_name: str) -> None:
        """Take folder, id and name from the run folder, where neither the user nor the environment gave any.

        Call it before the run starts.

        Raises:
            ConfigError: `WANDB_MODE` is no mode.
            UserError: The folder cannot be written.
        """
        self._save_dir = self._wandb_init["dir"] = self._save_dir or os.fspath(folder)
        if "WANDB_RUN_ID" not in os.environ:
            self._id = self._wandb_init["id"] = self._id or run_id
        if "WANDB_NAME" not in os.environ:
            self._name = self._wandb_init["name"] = self._name or run_name
        if self._wanted() != "disabled":
            self._claim_folder()

    def go_on(self) -> None:
        """Say that training goes on from a checkpoint: what was logged beyond it comes again, and is logged once.

        Call it after `bind`, before the run starts.
        """
        self._goes_on = True

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`, started on first use; a stand-in that does nothing if W&B cannot even write offline.

        Raises:
            ConfigError: `WANDB_MODE` is no mode.
            UserError: The folder cannot be written.
        """
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    @rank_zero_only
    def log_config(self, config: dict[str, Any]) -> None:
        """Record the resolved configuration: nested dicts, lists, str, int, float, bool and None."""
        with self._forgiving("log the configuration"):
            self.experiment.config.update(config, allow_val_change=True)

    @rank_zero_only
    def log_pictures(self, key: str, pictures: Sequence[NDArray[np.uint8]], step: int | None = None) -> None:
        """Record pictures, each (H, W, 3) uint8."""
        with self._forgiving("log pictures"):  # through Pillow, since W&B may rescale the values of an array
            self.log_image(key, [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures], step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images with optional captions, masks and boxes, as Lightning's logger does."""
        with self._forgiving("log images"):
            super().log_image(key, images, step, **kwargs)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add to the configuration."""
        with self._forgiving("log hyperparameters"):
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics. A step lower than the last one counts as the last, so that the x-axis never runs back."""
        with self._forgiving("log metrics"):
            if step is not None and self.experiment is not None:  # started first: a resumed run knows its last step
                if self._goes_on and step < self._last_step:
                    return  # the process that died logged it
                step = self._last_step = max(step, self._last_step)
                self._note_step(step)
            super().log_metrics(metrics, step)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember the checkpoint for upload if `log_model` is set."""
        with self._forgiving("log a checkpoint"):
            super().after_save_checkpoint(checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints if `log_model` is set. The run stays open: a test may follow."""
        with self._forgiving("log the checkpoints"):
            super().finalize(status)

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        """End the run, as finished or as failed; wait no longer than `finish_timeout` for it.

        Without it the run ends with the process. A process that forks while a run is open ends it for both.
        """
        if self._experiment is None or not hasattr(self._experiment, "finish"):
            return
        run, self._experiment = self._experiment, None
        with self._forgiving("finish the run"):
            folder = Path(run.dir).parent
            if not _within(self._finish_timeout + 5, lambda: run.finish(exit_code)):
                raise TimeoutError(f"its service does not answer; upload later with: wandb sync {folder}")

    def _start(self) -> Any:
        """Start the run as wanted, else offline, else as one that records nothing."""
        import wandb

        wanted = self._wanted()
        if wanted != "disabled":
            self._claim_folder()
        for mode, why in ((wanted, "as asked"), ("offline", "going online failed"), ("disabled", "nothing else works")):
            try:
                return self._attempt(mode, why)
            except Exception as error:
                self._complain("start", error)
                with suppress(Exception):
                    _within(10, wandb.teardown)  # else the id counts as in use
        self._complained.add("log")  # the warning of the start says it all
        stand_in: Any = DummyLogger().experiment
        stand_in.id = self._id
        return stand_in

    def _attempt(self, mode: str, why: str) -> Any:
        """Start the run in one mode, or offline if there is no way online, and print which."""
        import wandb

        if wandb.run is not None and self._id not in (None, wandb.run.id):
            _within(
                self._finish_timeout + 5, wandb.finish
            )  # else Lightning would log into the run of an earlier training
        mode, why, key = find_mode(mode, why)
        self._wandb_init.update(mode=mode, settings=self._settings(mode, key))
        if self._wandb_init["dir"]:  # W&B's service, which writes there, may have started in another working folder
            self._wandb_init["dir"] = os.path.abspath(self._wandb_init["dir"])
        run = super().experiment
        self._last_step = max(int(run.summary.get(STEP) or 0), self._noted_step())  # of a run that is continued
        if mode == "offline":
            print(f"W&B: offline ({why}); upload later with: wandb sync {Path(run.dir).parent}")
        else:
            print(f"W&B: {mode}" if mode == "disabled" else f"W&B: {mode} at {run.url}")
        return run

    @property
    def _note(self) -> Path:
        """Where the last step is noted: an offline run that was killed has no summary that says it."""
        return Path(self._save_dir or ".") / "wandb" / f".last-step-{self._id}"

    def _note_step(self, step: int) -> None:
        if self._note.parent.is_dir():  # W&B has made it, unless it is disabled
            self._note.write_text(str(step))

    def _noted_step(self) -> int:
        return int(self._note.read_text() or 0) if self._goes_on and self._note.exists() else 0

    def _settings(self, mode: str, key: str | None) -> Any:
        """Settings for `wandb.init`; an older W&B lacks some of them."""
        import wandb

        options: dict[str, Any] = {
            "api_key": key,  # given explicitly, so that W&B has no reason to prompt
            "init_timeout": 10,
            "finish_timeout": self._finish_timeout,
            "quiet": True,
            "silent": mode == "offline",  # the line we print says it all
        }
        known = wandb.Settings.model_fields
        return wandb.Settings(**{name: value for name, value in options.items() if name in known})

    def _wanted(self) -> str:
        """Return the mode that the environment or else the user asked for."""
        mode = os.environ.get("WANDB_MODE")
        if not mode:
            return self._mode
        if mode not in MODES:
            raise ConfigError(f"The environment variable WANDB_MODE is '{mode}': {suggest(mode, MODES)}")
        return MODES[mode]

    def _claim_folder(self) -> None:
        """Make sure that files can be written, since W&B would silently write to another folder."""
        folder = Path(self._save_dir or ".") / "wandb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"The W&B logger cannot write to {folder}: {error.strerror}. Make it a writable folder, give another "
                "as save_dir, or set mode: disabled"
            ) from error

    @contextmanager
    def _forgiving(self, doing: str) -> Iterator[None]:
        """Let training go on whatever W&B raises; only what the user can mend before training gets through."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self._complain(doing, error)

    def _complain(self, doing: str, error: Exception) -> None:
        """Warn about the first trouble of a kind: at the start, or later."""
        kind = "start" if doing == "start" else "log"
        if kind not in self._complained:
            self._complained.add(kind)
            reason = " ".join(str(error).split())
            rank_zero_warn(f"W&B could not {doing}, training goes on: {type(error).__name__}: {reason}")


def find_mode(mode: str, why: str = "as asked", ask: bool = True) -> tuple[str, str, str | None]:
    """Return the mode that a run would have, why, and the API key for it.

    Args:
        mode: What is asked for: "auto" or one of the modes.
        why: Who asks for it.
        ask: Whether to ask the server, if nothing else is in the way of going online.
    """
    import wandb

    key = None
    if mode == "auto":
        mode = MODES[wandb.setup().settings.mode]  # what the command `wandb offline` left, else online
    if mode in ("online", "shared"):
        settings = wandb.setup().settings
        key = _find_key(settings)
        obstacle = _find_obstacle(settings, key, ask)
        mode, why = ("offline", obstacle) if obstacle else (mode, why)
    return mode, why, key


def _check_names(project: str | None, run_id: str | None, tags: list[str] | None) -> None:
    """Raise a `ConfigError` for what W&B would refuse only after the data are loaded."""
    import wandb

    try:
        wandb.Settings(project=project, run_id=run_id)
    except wandb.errors.UsageError as error:
        raise ConfigError(f"W&B: {error}") from error
    for tag in tags or ():
        if not 1 <= len(tag) <= 64:
            raise ConfigError(f"W&B: a tag has 1 to 64 characters, got {len(tag)}: '{tag}'")


def _find_key(settings: Any) -> str | None:
    """Find the API key where W&B looks before it prompts: environment, settings file, netrc file."""
    if settings.api_key:
        return str(settings.api_key)
    hosts = [urlsplit(settings.base_url).netloc]
    if settings.base_url == type(settings).model_fields["base_url"].default:
        hosts.append("api.wandb.ai")  # a login from before W&B 0.31 moved its cloud to another host still counts
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(file).expanduser() for file in files):
        with suppress(NetrcParseError, OSError):
            logins = [netrc(path).authenticators(host) for host in hosts]
            return next((login[2] for login in logins if login and login[2]), None)
    return None


def _find_obstacle(settings: Any, key: str | None, ask: bool) -> str | None:
    """Say what stands in the way of going online, if anything does; the server is only asked if `ask`."""
    if not key and not settings.identity_token_file:
        return "no API key found; `wandb login` stores one"
    if ask and not _answers(settings.base_url):
        return f"{urlsplit(settings.base_url).netloc} does not answer"
    return None


def _answers(url: str, timeout: float = 2.0) -> bool:
    """Whether the server, or the proxy in front of it, accepts a connection within `timeout` seconds."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    place = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    with suppress(OSError):
        return _within(timeout, lambda: socket.create_connection(place, timeout).close())
    return False


def _within(seconds: float, call: Callable[[], object]) -> bool:
    """Whether a call that knows no timeout came to its end in time; raises what it raises."""
    ended: list[Exception | None] = []

    def work() -> None:
        try:
            call()
            ended.append(None)
        except Exception as error:
            ended.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if ended and ended[0] is not None:
        raise ended[0]
    return bool(ended)
