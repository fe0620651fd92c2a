"""`framework schedule show`: an experiment is built, not trained, and its course printed, written and drawn."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from framework.cli.check_config import BuiltExperiment
from framework.cli.draw_schedule import draw_timeline
from framework.cli.group_table import Group, group_lines, table
from framework.cli.keys import check_keys
from framework.cli.layers import option_layer, plugin_files, read_layer
from framework.cli.main import DEFAULTS
from framework.cli.silence import hush
from framework.cli.timeline import Span, Timeline, count_of, setting_name, setting_text, spread, timeline_of

BARS = "▁▂▃▄▅▆▇█"
PLOT_WIDTH = 40  # characters of a plot in the terminal
MOST_COLUMNS = 8  # stages that fit into a terminal; of more, the first and the last are printed
COUNTED = (  # for the steps
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "num_nodes",
    "overfit_batches",
    "fast_dev_run",
)
PLACED = ("accelerator", "devices", "strategy")  # for the processes


class ShownExperiment(BuiltExperiment):
    """An experiment whose data and model are built, with a trainer that only counts."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a trainer that knows how long the run is and how many processes share it."""
        config = self._get(self.config_init, "trainer", default={})
        given = config.get("callbacks") or []
        self.callbacks = given if isinstance(given, list) else [given]
        counted = {key: config[key] for key in COUNTED if config.get(key) is not None}
        placed = {key: config[key] for key in PLACED if config.get(key) is not None}
        try:
            return Trainer(**counted, **placed, **_bare())
        except (MisconfigurationException, ImportError, RuntimeError, ValueError):  # the device is elsewhere
            asked = placed.get("devices")
            devices = asked if isinstance(asked, int) and asked > 0 else 1
            where = f"{count_of(devices, 'process')} a node"
            print(f"note: {placed.get('accelerator')} is not here; counted for {where} on the CPU", file=sys.stderr)
            return Trainer(**counted, accelerator="cpu", devices=devices, **_bare())


def _bare() -> dict[str, Any]:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    return dict.fromkeys(off, False)


def show_schedule(
    files: Sequence[Path],
    options: Sequence[str],
    out: Path | None,
    as_json: bool,
    trust: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> None:
    """Print the course of an experiment, and write it where asked for.

    Args:
        files: The experiment, and more laid over it.
        options: Options of `fit`, laid over those.
        out: A picture, `.svg` or `.png`, or a table, `.csv`; None: neither.
        as_json: Print JSON.
        trust: Modules that the experiment may import beside the usual ones.
        plugins: Local files whose plugins it may use.

    Raises:
        ConfigError: Something in the experiment is wrong, or its schedules contradict each other.
        DataError: Its data cannot be read.
    """
    layers = [read_layer(DEFAULTS), *(read_layer(file) for file in files), option_layer(options)]
    hush()
    plugins = [*plugins, *(path for layer in layers for path in plugin_files(layer))]
    check_keys(layers, trust, plugins)
    configs = [part for file in (DEFAULTS, *files) for part in ("--config", str(file))]
    built = ShownExperiment(files[-1].stem, layers, plugins, [], args=["fit", *configs, *options])
    timeline = timeline_of(files[-1].stem, built.trainer, built.model, built.datamodule, built.callbacks)
    if out is not None and out.suffix.lower() == ".csv":
        _write_table(timeline, out)
    elif out is not None:
        draw_timeline(timeline).save(out)
    print(json.dumps(_facts(timeline), indent=2) if as_json else "\n".join(_lines(timeline)))
    if out is not None and not as_json:
        print(f"\nwritten      {out}")


# In print.


def _lines(timeline: Timeline) -> list[str]:
    return [
        f"{timeline.name}: {timeline.length}",
        "",
        "parameter groups",
        *group_lines(timeline.groups, timeline.run),
        "",
        f"learning rate, {type(timeline.schedule).__name__}",
        *table([["group", "base", "first", "highest", "last", ""], *(_rate_row(timeline, g) for g in timeline.groups)]),
        "",
        "epochs and stages",
        *table([row for row in _setting_rows(timeline) if any(row[1:])]),
        *(["", "other schedules", *table(_course_rows(timeline))] if timeline.courses else []),
    ]


def _rate_row(timeline: Timeline, group: Group) -> list[str]:
    peak = timeline.peak_of(group)
    first, highest, last = (f"{group.base * group.factor(step):.3g}" for step in (0, peak, timeline.steps - 1))
    plot = _plot(timeline, group.factor) if group.trained else "frozen"
    return [group.name, f"{group.base:.3g}", first, f"{highest} at step {peak}", last, plot]


def _setting_rows(timeline: Timeline) -> list[list[str]]:
    spans = timeline.spans
    if len(spans) > MOST_COLUMNS:
        spans = [*spans[: MOST_COLUMNS // 2], *spans[-MOST_COLUMNS // 2 :]]
    rows = [
        ["epochs", *(f"{span.epochs[0]}-{span.epochs[1] - 1}" for span in spans)],
        ["steps", *(f"{span.steps[0]}-{span.steps[1] - 1}" for span in spans)],
        ["batches an epoch", *(str(span.batches) for span in spans)],
    ]
    rows += [[setting_name(name), *(setting_text(span.settings[name]) for span in spans)] for name in spans[0].settings]
    return rows if spans == timeline.spans else [[*row[:5], "..." if any(row[1:]) else "", *row[5:]] for row in rows]


def _course_rows(timeline: Timeline) -> list[list[str]]:
    rows = []
    for name, course in timeline.courses.items():
        first, last = (course(timeline.moment(step)) for step in (0, timeline.steps - 1))
        plot = _plot(timeline, lambda step, course=course: course(timeline.moment(step)))  # type: ignore[misc]
        rows.append([name, f"{first:.6g}", f"{last:.6g}", plot])
    return [["", "first", "last", ""], *rows]


def _plot(timeline: Timeline, value: Callable[[int], float]) -> str:
    """Plot values over the run in a line of text, from 0 to the highest."""
    values = [value(step) for step in spread(timeline.steps, PLOT_WIDTH)]
    top = max(values)
    return "".join(BARS[round((len(BARS) - 1) * max(0.0, each) / top)] if top > 0 else BARS[0] for each in values)


# For programs.


def _facts(timeline: Timeline) -> dict[str, Any]:
    return {
        "experiment": timeline.name,
        "epochs": timeline.epochs,
        "steps": timeline.steps,
        "processes": timeline.processes,
        "schedule": type(timeline.schedule).__name__,
        "groups": [
            {
                "name": group.name,
                "parameters": group.parameters,
                "trained": group.trained,
                "base": group.base,
                "weight_decay": group.decay,
                "tensors": group.tensors,
                "trained_steps": [[first, int(min(end, timeline.steps))] for first, end in group.periods],
                "first": group.base * group.factor(0),
                "highest": group.base * group.factor(timeline.peak_of(group)),
                "highest_step": timeline.peak_of(group),
                "last": group.base * group.factor(timeline.steps - 1),
            }
            for group in timeline.groups
        ],
        "stages": [_stage_facts(span) for span in timeline.spans],
        "others": {
            name: [course(timeline.moment(step)) for step in (0, timeline.steps - 1)]
            for name, course in timeline.courses.items()
        },
    }


def _stage_facts(span: Span) -> dict[str, Any]:
    return {
        "first_epoch": span.epochs[0],
        "last_epoch": span.epochs[1] - 1,
        "first_step": span.steps[0],
        "last_step": span.steps[1] - 1,
        "batches": span.batches,
        **span.settings,
    }


def _write_table(timeline: Timeline, path: Path) -> None:
    """Write a row for every optimizer step."""
    settings = [name for name, value in timeline.spans[0].settings.items() if value is not None]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", *(f"lr/{g.name}" for g in timeline.groups), *settings, *timeline.courses])
        for span in timeline.spans:
            said = [setting_text(span.settings[name]) for name in settings]
            for step in range(*span.steps):
                moment = timeline.moment(step)
                rates = [group.base * group.factor(step) for group in timeline.groups]
                others = [course(moment) for course in timeline.courses.values()]
                writer.writerow([step, moment.epoch, *rates, *said, *others])
