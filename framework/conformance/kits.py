"""Which checks a plugin of a kind has to pass, and how they are run from a notebook, a test or the command line."""

from collections.abc import Collection, Mapping
from typing import Any

from framework.conformance import backbones, data, heads, losses
from framework.conformance.check import Check, Make, Verdict, run_checks
from framework.errors import ConfigError, suggest

KITS: dict[str, tuple[Check, ...]] = {
    "backbones": backbones.CHECKS,
    "heads": heads.CHECKS,
    "losses": losses.CHECKS,
    "data": data.CHECKS,
}


def kit(kind: str, only: Collection[str] = ()) -> tuple[Check, ...]:
    """Return the checks of a kind.

    Args:
        kind: `backbones`, `heads`, `losses` or `data`.
        only: Names of the checks that are wanted; none: all.

    Raises:
        ConfigError: There is no kit for it, or no check of that name in it.
    """
    if kind not in KITS:
        raise ConfigError(f"there is no conformance kit for {kind}; {suggest(kind, KITS)}".rstrip("; "))
    names = [check.name for check in KITS[kind]]
    for name in only:
        if name not in names:
            raise ConfigError(f"there is no check {name} of {kind}; {suggest(name, names)}".rstrip("; "))
    return tuple(check for check in KITS[kind] if not only or check.name in only)


def check_plugin(make: Make, kind: str = "backbones") -> list[Verdict]:
    """Run every check of a kind.

    Args:
        make: Builds a small plugin: its class, or a `functools.partial` of it.
        kind: `backbones`, `heads`, `losses` or `data`.

    Raises:
        ConfigError: There is no kit for that kind.
    """
    return list(run_checks(make, kit(kind)))


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
        for check in kit(kind):
            identity = f"{name}-{check.name}"
            marks = [pytest.mark.xfail(reason=known.pop(identity), strict=True)] if identity in known else []
            cases.append(pytest.param(make, check, id=identity, marks=marks))
    if known:
        raise ConfigError(f"expected_failures names no check: {', '.join(known)}")
    return pytest.mark.parametrize(("make", "check"), cases)
