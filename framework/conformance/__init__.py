"""The conformance kit: small behavioural checks of a plugin, whose names are the rules and whose messages the remedies.

In a plugin author's own tests:

    from framework.conformance import parametrize_with_checks

    @parametrize_with_checks({"MyNet": MyNet, "a wide one": partial(MyNet, width=64)})
    def test_conforms(make, check):
        check(make)
"""

from framework.conformance.check import Check, Make, NonconformityError, Verdict, run_checks
from framework.conformance.kits import KITS, check_plugin, parametrize_with_checks

__all__ = [
    "KITS",
    "Check",
    "Make",
    "NonconformityError",
    "Verdict",
    "check_plugin",
    "parametrize_with_checks",
    "run_checks",
]
