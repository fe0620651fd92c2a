"""The picture of `framework schedule show`: a panel for each schedule, over the steps of the run."""

from collections.abc import Iterator

from framework.canvas import Canvas
from framework.chart import Panel, Series, draw_chart
from framework.cli.group_table import Group
from framework.cli.timeline import Timeline, setting_name, setting_text, spread

MOST_POINTS = 1500  # of a line, in a picture that is about a thousand units wide


def draw_timeline(timeline: Timeline) -> Canvas:
    """Draw learning rates, what changes between stages, and other schedules over the steps of a run."""
    steps = spread(timeline.steps, MOST_POINTS)
    rates = [Series(name, [(step, g.base * g.factor(step)) for step in steps]) for name, g in _rates(timeline)]
    panels = [Panel(f"learning rate, {type(timeline.schedule).__name__}", rates, height=150)]
    panels += [
        Panel(setting_name(name), [_stairs(timeline, name)], height=64)
        for name in timeline.spans[0].settings
        if len({span.settings[name] for span in timeline.spans}) > 1
    ]
    panels += [
        Panel(name, [Series("", [(step, course(timeline.moment(step))) for step in steps])], height=64)
        for name, course in timeline.courses.items()
    ]
    borders = [(float(span.steps[0]), f"epoch {span.epochs[0]}") for span in timeline.spans[1:]]
    return draw_chart(f"{timeline.name}: {timeline.length}", panels, "optimizer step", borders)


def _rates(timeline: Timeline) -> Iterator[tuple[str, Group]]:
    """Give one of the groups of each course of the rate, with the names of all that share it, and the base rate."""
    trained = [group for group in timeline.groups if group.trained] or timeline.groups
    for kind in dict.fromkeys((group.base, group.periods) for group in trained):
        alike = [group for group in trained if (group.base, group.periods) == kind]
        parts = dict.fromkeys(group.name.partition("/")[0] for group in alike)
        yield f"{', '.join(parts)} {kind[0]:.3g}", alike[0]


def _stairs(timeline: Timeline, name: str) -> Series:
    """Return a line that stays through each stage and jumps between them; of an image size, its longer side."""
    points, labels = [], []
    for span in timeline.spans:
        value = span.settings[name]
        level = float(max(value) if isinstance(value, tuple) else value or 0)
        points += [(float(span.steps[0]), level), (float(span.steps[1]), level)]
        labels += [setting_text(value), ""]
    return Series("", points, labels=labels)
