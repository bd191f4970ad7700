"""What decides a mask or a training's step, as it is in memory: objects by class and attributes, networks by their
weights too; its hash."""

import functools
import hashlib
import json
import math
import types
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def describe(thing: Any, within: Sequence[int] = ()) -> Any:
    """Plain values that are alike for two objects which compute alike, in this process or another.

    An object is its class and its attributes, a function its code, an array its content. Nothing is named by hand, so
    nothing can be forgotten; a class may name attributes that change no result in ``UNDECISIVE``.

    Args:
        thing: anything.
        within: ids of the objects that it is part of.
    """
    if id(thing) in within:
        return "itself"
    inner = [*within, id(thing)]
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, PurePath | torch.dtype | torch.device | np.dtype | types.ModuleType):
        return str(thing)
    if isinstance(thing, Mapping):
        return {str(key): describe(value, inner) for key, value in thing.items()}
    if isinstance(thing, Set):
        return sorted((describe(value, inner) for value in thing), key=json.dumps)
    if isinstance(thing, Sequence) and not isinstance(thing, bytes):
        return [describe(value, inner) for value in thing]
    if isinstance(thing, Tensor | np.ndarray | bytes):
        return _digest({"": thing})
    if isinstance(thing, nn.Module):
        return describe_network(thing, inner)
    if isinstance(thing, type) or not hasattr(thing, "__dict__"):
        return _name(thing if isinstance(thing, type | types.BuiltinFunctionType) else type(thing))
    if isinstance(thing, functools.partial):
        return {"call": describe(thing.func, inner), "with": describe([thing.args, thing.keywords], inner)}
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return {"function": _name(thing), "code": _code(thing.__code__), "holds": describe(cells, inner)}
    if isinstance(thing, types.MethodType):
        return {"method": _name(thing), "of": describe(thing.__self__, inner)}
    return {"class": _name(type(thing)), **_attributes(thing, inner)}


def describe_network(network: nn.Module, within: Sequence[int] = ()) -> dict[str, Any]:
    """Classes and attributes of all modules, without hooks and the like, and a hash of weights and buffers."""
    return {
        "modules": describe_modules(network, within),
        "weights": _digest({**dict(network.named_parameters()), **dict(network.named_buffers())}),
    }


def describe_modules(network: nn.Module, within: Sequence[int] = ()) -> dict[str, Any]:
    """Class and attributes of each module, the same whether it is sharded or not."""
    return {
        name or "network": {"class": _name(_own_class(module)), **_attributes(module, [*within, id(module)])}
        for name, module in network.named_modules()
    }


def _own_class(module: nn.Module) -> type:
    """The class of a module as it was before it was sharded (FSDP2 derives one from FSDPModule and it)."""
    kind = type(module)
    sharded = any(base.__name__ == "FSDPModule" for base in kind.__bases__)
    return kind.__bases__[-1] if sharded else kind


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _attributes(thing: Any, within: Sequence[int]) -> dict[str, Any]:
    module = isinstance(thing, nn.Module)  # there, what begins with _ is PyTorch's, and "training" no setting
    left_out = {*getattr(type(thing), "UNDECISIVE", ()), *(("training",) if module else ())}
    return {
        name: describe(value, within)
        for name, value in vars(thing).items()
        if name not in left_out and not (module and name.startswith("_"))
    }


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(array, bytes):
            digest.update(array)
        else:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
