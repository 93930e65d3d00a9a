"""A GPU that is not there: tensors of the device "simulated", whose numbers are computed on the CPU.

What a GPU refuses is refused: one operation on tensors of both devices, a NumPy array of a tensor that is not on the
CPU, a generator of the CPU that draws for the device. Counted is what the CPU has to wait for the device for. Random
numbers are the CPU's, so that an agent that is trained there gets the weights that it would get on the CPU.

torch's Python backends are experimental, and there since torch 2.10.
"""
import collections
import contextlib

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_setup_privateuseone_for_python_backend(NAME)  # for good: a process has one such backend
HERE, CPU = torch.device(NAME, 0), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}  # row numbers may be on the CPU
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
         aten._unique2.default}  # for a number, or for the size of the result
waits = collections.Counter()


class OnDevice(torch.Tensor):
    """A tensor on the device; ``inner`` holds its numbers."""

    @staticmethod
    def __new__(cls, inner):
        """Shape and type are those of ``inner``, a tensor on the CPU."""
        out = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=HERE, requires_grad=False)
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})

    def __tensor_flatten__(self):  # asked for where modules move to the device
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return OnDevice(inner["inner"])

    def numpy(self, *args, **kwargs):
        """As of a tensor on a GPU."""
        raise TypeError("can't convert {} device type tensor to numpy. Use Tensor.cpu() first".format(HERE))

    __array__ = numpy

    def tolist(self):
        """A list of its numbers."""
        return self.cpu().tolist()

    def __repr__(self):
        return "OnDevice({!r})".format(self.inner)


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device or moved to it have no argument there yet that would say so."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


@contextlib.contextmanager
def simulated():
    """In here the device is there; yields the counter of what was waited for."""
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) would go past Python
    waits.clear()
    try:
        with _Factories():
            yield waits
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


def _compute(func, args, kwargs):
    tensors = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    asked = kwargs.get("device")
    goes_there = torch.device(asked).type == NAME if asked is not None else bool(ours)
    if func is aten.copy_.default:
        goes_there = isinstance(args[0], OnDevice)
    elif func not in COPIES:
        _refuse(func, args, tensors, ours)
    if goes_there and kwargs.get("generator") is not None:
        raise RuntimeError("{}: expected a generator of the device, found the CPU's".format(func))
    if ours and (func in WAITS or func in COPIES and not goes_there or func in INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1])):
        waits[str(func)] += 1
    inner_args, inner_kwargs = pytree.tree_map(
        lambda item: item.inner if isinstance(item, OnDevice) else item, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = CPU
    out = func(*inner_args, **inner_kwargs)
    if not goes_there:
        return out
    known = {id(tensor.inner): tensor for tensor in ours}  # what is changed in place is itself
    out = pytree.tree_map(lambda item: item if not isinstance(item, torch.Tensor) else
                          known[id(item)] if id(item) in known else OnDevice(item), out)
    if not ours or func is aten._to_copy.default:
        return out
    return return_and_correct_aliasing(func, args, kwargs, out)


def _refuse(func, args, tensors, ours):
    """Raise RuntimeError if a GPU would not compute ``func``: scalars and row numbers may be on the CPU."""
    if not ours:
        return
    rows = [] if func not in INDEXING else [index for index in args[1] if index is not None]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()
                 and not any(tensor is row for row in rows)]
    if elsewhere or not isinstance(args[0] if isinstance(args[0], torch.Tensor) else ours[0], OnDevice) and (
            func in INDEXING or func._schema.is_mutable):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, {} and cpu! "
                           "({})".format(HERE, func))
