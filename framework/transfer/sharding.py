"""FSDP2: parameters, gradients and optimizer state spread over the processes, and put together in checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from framework.errors import ConfigError
from framework.transfer.distributed import before_toggle

DATA_PARALLEL = "data_parallel"  # Lightning's name of the axis of the mesh


class FullySharded(ModelParallelStrategy):
    """Fully sharded data parallel training (FSDP2): each process keeps a share of parameters and optimizer state.

    Lightning's `ModelParallelStrategy`, with all processes on one axis, and checkpoints that are one file, the same
    as those of one process: any strategy goes on from them. Weights and optimizer state are read from them in the
    order that Lightning has for DDP, so that whatever is frozen by a callback is frozen in time.

    Source: Zhao et al., PyTorch FSDP (arXiv 2304.11277); `torch.distributed.fsdp.fully_shard`.

    Args:
        data_parallel_size: Processes that the network is spread over; `auto`, or the number of all of them.
        process_group_backend: How processes talk, `nccl` or `gloo`; null: what suits the device.
        options: Other arguments of `ModelParallelStrategy`, such as `timeout`.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        process_group_backend: str | None = None,
        **options: Any,
    ) -> None:
        options |= {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}
        super().__init__(process_group_backend=process_group_backend, **options)
        self.data_parallel_size = data_parallel_size

    def setup_environment(self) -> None:
        """Start the processes' talk, all of them on one axis; also before there is a network to spread."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self.lightning_module is None:
            self._setup_distributed()
        else:
            super().setup_environment()

    # Checkpoints: whole tensors on the first process, in Lightning's usual order.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restore before the optimizer is there, as other strategies do."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Restore the optimizer by `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Put the weights together; empty on all processes but the first."""
        return whole(self._module().state_dict(), keep=self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole weights, each process its share."""
        own = self._module().state_dict()
        given = checkpoint["state_dict"]
        shares = {name: spread_like(value, own[name]) if name in own else value for name, value in given.items()}
        self._module().load_state_dict(shares, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Put the optimizer's state together; without values on all processes but the first."""
        state = optimizer.state_dict()
        state["state"] = {
            index: whole(state["state"][index], keep=self.is_global_zero) for index in sorted(state["state"])
        }
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load whole optimizer states, by the names or the numbers of parameters, each process its share."""
        named = dict(self._module().named_parameters())
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbered = enumerate(parameter for group in optimizer.param_groups for parameter in group["params"])
            own: dict[Any, nn.Parameter] = {**named, **dict(numbered)}
            shares = {
                key: {name: spread_like(value, own[key]) for name, value in values.items()}
                for key, values in state["state"].items()
                if key in own
            }
            optimizer.load_state_dict({**state, "state": shares})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint file, on every process."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    # Evaluation: processes may run different numbers of windows and sizes, so that a forward pass may not wait.

    def on_validation_start(self) -> None:
        """Gather the weights, and let all processes have the same buffers: the average of them, if there is one."""
        gather(self._module())
        spread_buffers(self._module())

    def on_validation_end(self) -> None:
        """Free the gathered weights."""
        scatter(self._module())

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


StrategyRegistry.register("fsdp2", FullySharded, description="Fully sharded data parallel training (FSDP2)")


# The network.


def shard(task: nn.Module, backbone: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the parameters of a task over the processes: those of the backbone's parts, its head, and the rest.

    Each group is gathered while its layers compute, and freed afterwards. A second call changes nothing.

    Args:
        task: The task; its `head`, if it has one, is a group of its own.
        backbone: The backbone in it.
        mesh: The processes; its axis `data_parallel` is used.

    Raises:
        ConfigError: A parameter cannot be spread.
    """
    if isinstance(task, FSDPModule):
        return
    task.to(memory_format=torch.contiguous_format)  # the only one that FSDP2 takes
    head = getattr(task, "head", None)
    heads = [head] if isinstance(head, nn.Module) and any(True for _ in head.parameters()) else []
    try:
        for module in [*parts(backbone), *heads, task]:
            module.register_forward_hook(_own_output)
            fully_shard(module, mesh=mesh[DATA_PARALLEL])
        for module in heads:
            if hasattr(module, "coarse"):  # dense heads are called by it, too
                register_fsdp_forward_method(module, "coarse")
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"trainer.strategy: fsdp2 cannot spread {type(backbone).__name__}: {error}") from error
    task.register_forward_pre_hook(lambda module, _: spread_buffers(module) if module.training else None)


def parts(backbone: Any) -> list[nn.Module]:
    """Return the largest submodules of a backbone that lie in one of its stages and can be gathered by themselves.

    A module is gathered while it is called, so all that is done with its parameters must be done inside its calls. A
    probe forward tells.

    Args:
        backbone: A backbone, not sharded yet.
    """
    stage = {id(parameter): index for index, group in enumerate(backbone.stages()) for parameter in group}
    callers = _callers(backbone)

    def largest(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            inside = [id(parameter) for parameter in child.parameters()]
            used = [callers[parameter] for parameter in inside if parameter in callers]
            stages = {stage[parameter] for parameter in inside if parameter in stage}  # an adapter's are in none
            if len(stages) == 1 and used and child in set.intersection(*used):
                yield child
            elif inside:
                yield from largest(child)

    return list(dict.fromkeys(largest(backbone)))


def _callers(backbone: Any) -> dict[int, set[nn.Module]]:
    """Return, by the id of each parameter that a probe forward uses, the modules inside whose calls it always is."""
    uses = _Uses({id(parameter) for parameter in backbone.parameters()})
    hooks = []
    for module in backbone.modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _: uses.active.append(module)))
        hooks.append(module.register_forward_hook(lambda *_: uses.leave()))
    try:
        with uses:
            backbone.probe()
    finally:
        for hook in hooks:
            hook.remove()
    return uses.callers


class _Uses(TorchFunctionMode):
    """Notes which modules are at work whenever a parameter is used.

    Args:
        parameters: Their ids.
    """

    def __init__(self, parameters: set[int]) -> None:
        super().__init__()
        self.parameters = parameters
        self.active: list[nn.Module] = []
        self.callers: dict[int, set[nn.Module]] = {}

    def leave(self) -> None:
        """Note that the innermost module is done."""
        self.active.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # shapes and types are known without the values
            for used in self.parameters.intersection(_ids((*args, *kwargs.values()))):
                self.callers[used] = self.callers.get(used, set(self.active)) & set(self.active)
        return func(*args, **kwargs)


def _ids(values: Any) -> Iterator[int]:
    """Return the ids of values, and of what lists hold."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _ids(value)
        else:
            yield id(value)


def _own_output(module: nn.Module, _: Any, output: Any) -> Any:
    """Return a copy where a module returns a view: what changes that in place would cut FSDP2's hook off, silently."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


@torch.no_grad()
def spread_buffers(module: nn.Module) -> None:
    """Let all processes have the buffers of the first, such as running means, as DDP does before each forward pass."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        broadcast(flat, 0)
        shares = torch.split(flat, [buffer.numel() for buffer in buffers])
        for buffer, value in zip(buffers, shares, strict=True):
            buffer.copy_(value.view_as(buffer))


def gather(module: nn.Module) -> None:
    """Let every process hold all weights, until `scatter`, so that forward passes need no other process."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def scatter(module: nn.Module) -> None:
    """Let every process hold its share of the weights alone."""
    before_toggle(module)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(part is not module, recurse=False)  # the outermost is needed at once again


# Tensors.


def local_part(value: Tensor) -> Tensor:
    """Return this process's share of a tensor, not copied; the tensor itself where it is not spread."""
    return value.to_local() if isinstance(value, DTensor) else value


def spread_like(value: Any, like: Tensor) -> Any:
    """Return this process's share of a whole tensor, spread as another is; all processes must call this.

    Args:
        value: The whole tensor; anything else, such as the number of a step, is returned as it is.
        like: The tensor whose device and places it takes; a tensor of another shape is on all processes.
    """
    if not isinstance(value, Tensor) or value.ndim == 0 or not isinstance(like, DTensor):
        return value
    places = like.placements if value.shape == like.shape else [Replicate()] * like.device_mesh.ndim
    return distribute_tensor(value, like.device_mesh, places)


def whole(values: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Put tensors together that are spread over the processes; all processes must call this.

    Args:
        values: The tensors by name, and anything else.
        keep: Whether this process wants them, in its main memory; else it returns nothing.
    """
    kept: dict[str, Any] = {}
    for name, value in values.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            kept[name] = full.cpu() if isinstance(full, Tensor) else full
    return kept
