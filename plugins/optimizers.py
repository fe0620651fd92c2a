"""Optimizers beyond torch's, for large batches and for matrices: LARS, LAMB, Lion and Muon."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim.lars import Lars as TimmLARS
from timm.optim.lion import Lion as TimmLion
from timm.optim.muon import Muon as TimmMuon
from torch.optim import Optimizer


class LARS(TimmLARS):
    """SGD with momentum whose steps are a fixed share of each layer's weights: for large batches.

    You, Gitman and Ginsburg, arXiv 1708.03888. Parameters without weight decay take plain SGD steps.

    Args:
        params: Parameter groups.
        lr: Learning rate; the step is `trust` of it times the norm of the weights, so it is far larger than SGD's.
        momentum: Share of the last step that is kept, in [0, 1).
        weight_decay: L2 penalty, at least 0; at 0 nothing is scaled by layer.
        nesterov: Look ahead along the momentum.
        trust: How large a step is, as a share of the norm of the weights and at a learning rate of 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, trust_coeff=trust
        )


class LAMB(Optimizer):
    """Adam whose steps have the norm of each layer's weights, times the learning rate: for large batches.

    You et al., arXiv 1904.00962, algorithm 2, with the norm itself as scaling function. Parameters without weight decay
    take plain Adam steps. Timm's counts its steps by group, those in which a group was frozen too, so that the averages
    of what is unfrozen later are too small.

    Args:
        params: Parameter groups.
        lr: Learning rate, at least 0.
        betas: Decay of the averages of gradients and of their squares, each in [0, 1).
        eps: Added to the denominator.
        weight_decay: At least 0; at 0 nothing is scaled by layer.

    Raises:
        ValueError: One is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        if min(lr, eps, weight_decay, *betas) < 0 or max(betas) >= 1:
            raise ValueError(
                f"LAMB: lr, eps and weight_decay are at least 0 and betas in [0, 1), got lr {lr}, betas {betas}, "
                f"eps {eps}, weight_decay {weight_decay}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                trained = [parameter for parameter in group["params"] if parameter.grad is not None]
                if trained:
                    self._move(trained, group)
        return loss

    def _move(self, parameters: list[Any], group: dict[str, Any]) -> None:
        """Take one step with some parameters of a group."""
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"step": torch.tensor(0.0), "first": torch.zeros_like(parameter)}
                state["second"] = torch.zeros_like(parameter)
            state["step"] += 1
        first, second = ([state[moment] for state in states] for moment in ("first", "second"))
        steps, (beta1, beta2) = [state["step"].item() for state in states], group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        updates = torch._foreach_div(first, [1 - beta1**step for step in steps])
        deviations = torch._foreach_sqrt(torch._foreach_div(second, [1 - beta2**step for step in steps]))
        torch._foreach_add_(deviations, group["eps"])
        torch._foreach_div_(updates, deviations)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            norms = zip(torch._foreach_norm(parameters), torch._foreach_norm(updates), strict=True)
            torch._foreach_mul_(updates, [torch.where((w > 0) & (u > 0), w / u, 1.0) for w, u in norms])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


class Lion(TimmLion):
    """Steps of one size for every weight, in the direction of the sign of a momentum.

    Chen et al., arXiv 2302.06675, who take a learning rate 3 to 10 times smaller than AdamW's, and as much larger a
    weight decay.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Weight of the momentum in a step, and its decay, each in [0, 1).
        weight_decay: Decoupled, as AdamW's; at least 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)


class Muon(TimmMuon):
    """Steps that turn a matrix of weights alike in all directions; AdamW for what is no matrix.

    Jordan et al., kellerjordan.github.io/posts/muon, with steps as large as AdamW's (Liu et al., arXiv 2502.16982), so
    that AdamW's learning rate and weight decay hold for both. A convolution counts as a matrix of its output channels
    by all else. AdamW takes norms, biases, embeddings, depthwise convolutions and whatever else has no weight decay.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        weight_decay: Decoupled, as AdamW's; at least 0.
        momentum: Share of the last direction that is kept, in [0, 1).
        nesterov: Look ahead along the momentum.
        betas: AdamW's, for what is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            betas=betas,
            adjust_lr_fn="match_rms_adamw",
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one that says it has no weight decay is AdamW's."""
        apart = {"use_fallback": True} if param_group.get("weight_decay") == 0 else {}
        super().add_param_group({**param_group, **apart})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, AdamW's part at the learning rate of now: an earlier timm keeps that of the start."""
        for group in self.param_groups:
            if "adamw_lr" in group:
                group["adamw_lr"] = group["lr"]
        return super().step(closure)  # type: ignore[no-untyped-call]
