"""An optimizer between two runs: its state goes by parameter names, its hyperparameters come from the command."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from framework.errors import ConfigError

Names = list[list[str]]
"""The names of the parameters of each group, in the optimizer's order."""


class RatesByStep(LambdaLR):
    """Learning rates as a pure function of the step: the step is all that a checkpoint says about them.

    torch's own `LambdaLR` takes the base rates from the checkpoint too, so that a rate given anew has no effect.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of a checkpoint, with the base rates that the groups were built with."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def name_state(state: dict[str, Any], names: Names) -> dict[str, Any]:
    """Write an optimizer's state by names: by numbers, it would fit no other groups, nor FSDP2, which counts otherwise.

    Args:
        state: What the optimizer's `state_dict` returned; empty on processes that do not write.
        names: Of the parameters of each group.

    Returns:
        The same with names in place of numbers, its tensors not copied.
    """
    if not state:
        return state
    numbers = chain.from_iterable(group["params"] for group in state["param_groups"])
    of = dict(zip(numbers, chain.from_iterable(names), strict=True))
    return {
        "state": {of[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": list(own)} for group, own in zip(state["param_groups"], names, strict=True)
        ],
    }


def keep_hyperparameters(optimizer: Optimizer, names: Names) -> None:
    """Let whatever state the optimizer loads bring its momenta alone, dealt out to the groups as they are now.

    A parameter that a checkpoint has no state for, because it was frozen, begins as in the first step of a run.

    Args:
        optimizer: As it was built; its hyperparameters, such as the learning rate and weight decay, stay.
        names: Of the parameters of each group.
    """
    optimizer.register_load_state_dict_pre_hook(partial(_deal, names))


def _deal(names: Names, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a loaded state in the groups of the optimizer.

    Raises:
        ConfigError: It goes by numbers, and the groups differ.
    """
    loaded: Sequence[Any] = [group["params"] for group in state["param_groups"]]
    if all(isinstance(name, str) for name in chain.from_iterable(loaded)):
        loaded = names
    elif [len(group) for group in loaded] != [len(group) for group in names]:
        raise ConfigError(
            f"--ckpt_path: the checkpoint has {len(loaded)} groups of parameters without names, as older versions "
            f"wrote them, and this run has {len(names)} others: go on with model.freeze and learning rates as they were"
        )
    ours = set(chain.from_iterable(loaded))
    return {
        "state": {name: values for name, values in state["state"].items() if name in ours},
        "param_groups": [
            {**group, "params": list(own)} for group, own in zip(optimizer.param_groups, loaded, strict=True)
        ],
    }
