"""Which checks a plugin of a kind has to pass, and how they are run from a notebook, a test or the command line."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from framework.conformance import backbones, data, depth_losses, detection_heads, heads, losses
from framework.conformance.check import Check, Make, Verdict, run_checks
from framework.errors import ConfigError, suggest
from framework.heads.detection import DetectionHead
from framework.losses.depth import DepthLoss

KITS: dict[str, tuple[Check, ...]] = {
    "backbones": backbones.CHECKS,
    "heads": heads.CHECKS,
    "losses": losses.CHECKS,
    "data": data.CHECKS,
}


def kit(kind: str, only: Collection[str] = (), make: Make | None = None) -> tuple[Check, ...]:
    """Return the checks of a kind.

    Args:
        kind: `backbones`, `heads`, `losses` or `data`.
        only: Names of the checks that are wanted; none: all.
        make: Builds the plugin: heads that find objects have other rules than those that fill images, and losses of
            depths others than those of classes.

    Raises:
        ConfigError: There is no kit for it, or no check of that name in it.
    """
    if kind not in KITS:
        raise ConfigError(f"there is no conformance kit for {kind}; {suggest(kind, KITS)}".rstrip("; "))
    checks = KITS[kind]
    if kind == "heads" and make and _finds_objects(make):
        checks = detection_heads.CHECKS
    elif kind == "losses" and make and _is_of_depth(make):
        checks = depth_losses.CHECKS
    names = [check.name for check in checks]
    for name in only:
        if name not in names:
            raise ConfigError(f"there is no check {name} of {kind}; {suggest(name, names)}".rstrip("; "))
    return tuple(check for check in checks if not only or check.name in only)


def _finds_objects(make: Make) -> bool:
    """Tell a detection head."""
    built = _class_of(make, heads.CNN.levels, heads.CNN.prefix_tokens, 3)
    return issubclass(built, DetectionHead) or (hasattr(built, "losses") and hasattr(built, "detect"))


def _is_of_depth(make: Make) -> bool:
    """Tell a depth loss."""
    built = _class_of(make)
    return issubclass(built, DepthLoss) or hasattr(built, "relative")


def _class_of(make: Make, *arguments: Any) -> type:
    """Return the class that is built: where a function builds it, by building one; `object` if that fails."""
    while isinstance(make, partial):
        make = make.func
    if isinstance(make, type):
        return make
    try:
        return type(make(*arguments))
    except Exception:  # a check says so
        return object


def check_plugin(make: Make, kind: str = "backbones") -> list[Verdict]:
    """Run every check of a kind.

    Args:
        make: Builds a small plugin: its class, or a `functools.partial` of it.
        kind: `backbones`, `heads`, `losses` or `data`.

    Raises:
        ConfigError: There is no kit for that kind.
    """
    return list(run_checks(make, kit(kind, make=make)))


def parametrize_with_checks(
    makes: Mapping[str, Make], kind: str = "backbones", expected_failures: Mapping[str, str] | None = None
) -> Any:
    """Return a pytest decorator that makes one test of every plugin and check: `def test(make, check): check(make)`.

    Args:
        makes: What builds each plugin, by the name that its tests get.
        kind: `backbones`, `heads`, `losses` or `data`.
        expected_failures: Reasons by `NAME-CHECK` of what is known to fail; one that passes after all fails the test.
    """
    import pytest  # whoever does not test does not need it

    known = dict(expected_failures or {})
    cases = []
    for name, make in makes.items():
        for check in kit(kind, make=make):
            identity = f"{name}-{check.name}"
            marks = [pytest.mark.xfail(reason=known.pop(identity), strict=True)] if identity in known else []
            cases.append(pytest.param(make, check, id=identity, marks=marks))
    if known:
        raise ConfigError(f"expected_failures names no check: {', '.join(known)}")
    return pytest.mark.parametrize(("make", "check"), cases)
