"""A pretend accelerator: its tensors hold data of the processor but say `sim:0`, and it refuses what real ones refuse.

    with pretending() as counts: ...

Refused: mixing devices in one operation, `.numpy()`, float64 (MPS has none). `counts["read"]` is how often the host
waited for a number of the device (`.item()`, `.tolist()`, a boolean mask as an index, a copy back), `counts["kernel"]`
how many operations were started. It stands on torch's experimental support of devices written in Python.
"""

from __future__ import annotations

import collections
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("sim")
DEVICE = torch.device("sim", 0)
COUNTS: collections.Counter = collections.Counter()
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
INDEXED = {  # the index may be on the processor, and a boolean one has to be read
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}
READS |= {aten.equal.default, aten.is_nonzero.default, aten._unique2.default}
COMPOSITE = "CompositeImplicitAutograd"


class Pretended(torch.Tensor):
    """A tensor that says it is on `sim:0`; its numbers are in `inside`."""

    @staticmethod
    def __new__(cls, inside: torch.Tensor):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=DEVICE,
        )
        out.inside = inside
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        COUNTS["read"] += 1
        return self.inside.tolist()


def _ours(tensor) -> bool:
    return isinstance(tensor, Pretended)


def _refuse_mixture(func, args, leaves) -> None:
    others = [t for t in leaves if isinstance(t, torch.Tensor) and not _ours(t) and t.dim() > 0]
    if func in INDEXED and _ours(args[0]):
        others = [t for t in others if t.dtype not in (torch.int64, torch.bool)]
    if others:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cpu in {func}"
        )


def _run(func, args, kwargs):
    """One operation: refused, counted, done by the processor, its results wrapped."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
        with _Operations():  # in inference mode composite operations arrive whole
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
    leaves = tree_leaves((args, kwargs))
    there, place = any(map(_ours, leaves)), kwargs.get("device")
    if there and func not in COPIES:
        _refuse_mixture(func, args, leaves)
    masked = func in INDEXED and any(_ours(t) and t.dtype == torch.bool for t in args[1])
    COUNTS["kernel"] += there
    COUNTS["read"] += there and (func in READS or masked)
    inner, named = tree_map(lambda t: t.inside if _ours(t) else t, (args, kwargs))
    stays = there
    if place is not None:
        stays = torch.device(place).type == DEVICE.type
        named = named | {"device": torch.device("cpu")}
        COUNTS["read"] += there and not stays
    out = func(*inner, **{key: value for key, value in named.items() if key != "pin_memory"})
    if func is aten.copy_.default and there and not _ours(args[0]):
        COUNTS["read"] += 1
        return args[0]
    if func is aten._to_copy.default and out is inner[0]:
        out = out.clone()
    if func._schema.is_mutable and func._schema.name.endswith("_") and _ours(args[0]):
        return args[0]
    return tree_map(_wrapped if stays else lambda t: t, out)


def _wrapped(out):
    if not isinstance(out, torch.Tensor):
        return out
    if out.dtype == torch.float64:
        raise TypeError("float64 on an accelerator: MPS has none")
    return Pretended(out)


class _Operations(TorchDispatchMode):
    """Sees operations that make a tensor there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("device") is not None or any(map(_ours, tree_leaves((args, kwargs)))):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Lists(TorchFunctionMode):
    """torch.tensor(list, device=...) never becomes an operation: made here, then copied."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor):
            return func(*args, **kwargs)
        place = kwargs.pop("device", None)
        if isinstance(args[0], torch.Tensor):
            out = args[0].to(kwargs.get("dtype") or args[0].dtype)
        else:
            out = func(*args, **kwargs)
        return out if place is None else out.to(place)


@contextmanager
def pretending():
    """The device exists inside; yields its counts, from 0."""
    COUNTS.clear()
    with _Lists(), _Operations():
        yield COUNTS
