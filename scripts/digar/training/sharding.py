"""Sharded training (FSDP2): each process keeps a part of weights, gradients and optimizer state."""

from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard_network(network: nn.Module, precision: str, replicas: int = 1) -> nn.Module:
    """Shard a network in place, block by block, over all processes: the names of its weights stay.

    On GPUs with ``bfloat16`` the weights are gathered and multiplied in that type, while the shards, the sums of the
    gradients over the processes and the optimizer stay in float32. Build the optimizer after this.

    Args:
        network: a network of this bundle, on its device, with the same weights in every process.
        precision: of the inferer.
        replicas: groups of processes that hold the network whole each (hybrid sharding); it must divide their number.
            As many as there are nodes keeps what is gathered in every layer within a node.

    Raises:
        ValueError: the processes cannot be divided into so many groups.
    """
    processes = dist.get_world_size()
    if replicas < 1 or processes % replicas:
        raise ValueError(f"--replicas {replicas} does not divide the {processes} processes")
    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (replicas, processes // replicas), mesh_dim_names=("replicate", "shard"))
    half = device == "cuda" and precision == "bfloat16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32 if half else None,
        cast_forward_inputs=False,  # autocast casts where that is safe, as it does without sharding
    )
    backbone: Any = network.backbone
    for module in (*backbone.blocks, network):
        fully_shard(module, mesh=mesh if replicas > 1 else mesh["shard"], mp_policy=policy)
    return network


class WholeInValidation:
    """Gather the weights once for a validation, and let them go after it.

    Sharded layers gather their weights in every forward pass, all processes at once; in a validation processes make
    different numbers of passes, and would wait for each other for ever.

    Args:
        network: of :func:`shard_network`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, self.gather)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.let_go)

    def gather(self, evaluator: Engine) -> None:
        for module in self.sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def let_go(self, evaluator: Engine) -> None:
        for module in self.sharded:
            module.set_reshard_after_forward(module is not self.network, recurse=False)
            module.reshard()


def whole_state(item: Any) -> Any:
    """The state dict of a network, an optimizer, ... with every tensor whole: the same from any number of processes.

    All processes must call this; what the first one gets is whole.
    """
    if isinstance(item, nn.Module) and isinstance(item, FSDPModule):
        return get_model_state_dict(item, options=WHOLE)
    return _gathered(item.state_dict())


def restore(item: Any, state: Any) -> None:
    """Load what :func:`whole_state` gave, whatever shards the item now.

    Raises:
        KeyError, RuntimeError, ValueError: the state is another's.
    """
    if isinstance(item, nn.Module) and isinstance(item, FSDPModule):
        set_model_state_dict(item, state, options=WHOLE)
        return
    if isinstance(item, Optimizer):
        parameters = [parameter for group in item.param_groups for parameter in group["params"]]
        shards = {
            number: {name: _shard_as(parameters[number], value) for name, value in own.items()}
            for number, own in state["state"].items()
        }
        state = {**state, "state": shards}
    item.load_state_dict(state)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gathered(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _gathered(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_gathered(value) for value in state)
    return whole(state).cpu() if isinstance(state, DTensor) else state


def _shard_as(parameter: Tensor, value: Any) -> Any:
    """A value that an optimizer keeps of a parameter, sharded like that; numbers (its steps) are kept whole."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
