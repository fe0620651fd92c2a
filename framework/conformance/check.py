"""What a check is, and how a list of them is run."""

import copy
import io
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Make = Callable[..., Any]
"""Builds a small plugin; keyword arguments override its own."""


class NonconformityError(AssertionError):
    """A plugin breaks a rule.

    Args:
        expected: What the contract wants.
        found: What the plugin did.
        remedy: How to mend it.
    """

    def __init__(self, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"expected {expected}\nfound {found}\nto mend it: {remedy}")
        self.expected, self.found, self.remedy = expected, found, remedy


def demand(fulfilled: bool, expected: str, found: object, remedy: str) -> None:
    """Raise a `NonconformityError` unless a rule is fulfilled."""
    if not fulfilled:
        raise NonconformityError(expected, str(found), remedy)


def weigh(tensors: Sequence[Tensor]) -> Tensor:
    """Weigh every value at random, so that no normalisation makes the sum, and its gradient, constant."""
    generator = torch.Generator().manual_seed(1)
    terms = [x.float() for x in tensors]
    return torch.stack([(x * torch.rand(x.shape, generator=generator)).mean() for x in terms]).sum()


def difference(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest difference between tensors, relative to the largest value; NaN if one of them is."""
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(ones, others, strict=True)]
    scale = max(float(a.abs().max()) for a, _ in pairs) or 1.0
    return float(torch.stack([(a - b).abs().max() for a, b in pairs]).max()) / scale


def demand_independent_copies(first: nn.Module, run: Callable[[Any], Sequence[Tensor]]) -> None:
    """Raise a `NonconformityError` unless copies and pickles of a module do the same, and share no tensor with it."""
    expected = run(first)
    buffer = io.BytesIO()
    pickle.dump(first, buffer)
    buffer.seek(0)
    for how, other in (("copy.deepcopy", copy.deepcopy(first)), ("pickle", pickle.load(buffer))):
        gap = difference(expected, run(other))
        demand(
            gap <= 1e-6,
            f"equal results after {how}",
            f"a relative difference of {gap:.2g}",
            "keep closures, lambdas, hooks and references to the module itself out of its attributes",
        )
        shared = {id(x) for x in first.state_dict(keep_vars=True).values()}
        shared &= {id(x) for x in other.state_dict(keep_vars=True).values()}
        demand(
            not shared,
            f"no tensor shared with the original after {how}",
            f"{len(shared)} are",
            "keep tensors as attributes of the module, never of the class or of the Python module",
        )


class Maker:
    """Hands out pristine plugins: copies of one that is built once, or, by `anew`, one built again.

    Args:
        make: Builds the plugin.
    """

    def __init__(self, make: Make) -> None:
        self.make = make
        self._pristine: Any = None

    def __call__(self) -> Any:
        """Return a plugin that no check has touched."""
        if self._pristine is None:
            self._pristine = self.make()
        try:
            return copy.deepcopy(self._pristine)
        except Exception:  # a check of its own says so
            return self.make()

    def anew(self, *positional: Any, **overrides: Any) -> Any:
        """Build a plugin again, from other random numbers."""
        return self.make(*positional, **overrides)


@dataclass(frozen=True)
class Check:
    """One rule.

    Args:
        run: Raises a `NonconformityError`; its name is the rule, its docstring says it as a sentence.
        after: Checks without which this one means nothing: it is left out where one of them fails.
    """

    run: Callable[[Maker], None]
    after: tuple[Callable[[Maker], None], ...] = ()

    @property
    def name(self) -> str:
        """The rule, as an identifier."""
        return self.run.__name__

    @property
    def rule(self) -> str:
        """The rule, as a sentence."""
        return " ".join((self.run.__doc__ or "").split())

    def __call__(self, make: Make | Maker) -> None:
        """Check what `make` builds.

        Raises:
            NonconformityError: The rule is broken.
        """
        maker = make if isinstance(make, Maker) else Maker(make)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            try:
                self.run(maker)
            except NonconformityError:
                raise
            except Exception as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                raise NonconformityError(
                    self.rule[:1].lower() + self.rule[1:].rstrip("."),
                    f"{type(error).__name__}: {str(error).strip()[:400]} ({frame.filename}:{frame.lineno})",
                    "see the line named, or run it with --debug for the traceback",
                ) from error


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Args:
        name: The check.
        rule: Its rule as a sentence.
        outcome: `left out` where a check that it rests on failed.
        seconds: How long it took.
        expected: What the contract wants, if it failed.
        found: What the plugin did, if it failed.
        remedy: How to mend it, if it failed.
        rests_on: The failed check that it rests on, if it was left out.
    """

    name: str
    rule: str
    outcome: Literal["passed", "failed", "left out"]
    seconds: float = 0.0
    expected: str | None = None
    found: str | None = None
    remedy: str | None = None
    rests_on: str | None = None


def run_checks(make: Make, checks: Sequence[Check], debug: bool = False) -> Iterator[Verdict]:
    """Run checks one after the other, each on a pristine plugin; with `debug` the first failure is raised."""
    maker = Maker(make)
    open_failures: dict[Callable[[Maker], None], str] = {}
    for check in checks:
        cause = next((open_failures[other] for other in check.after if other in open_failures), None)
        if cause is not None:
            open_failures[check.run] = cause
            yield Verdict(check.name, check.rule, "left out", rests_on=cause)
            continue
        began = time.perf_counter()
        try:
            check(maker)
        except NonconformityError as error:
            if debug:
                raise
            open_failures[check.run] = check.name
            seconds = time.perf_counter() - began
            yield Verdict(check.name, check.rule, "failed", seconds, error.expected, error.found, error.remedy)
        else:
            yield Verdict(check.name, check.rule, "passed", time.perf_counter() - began)
