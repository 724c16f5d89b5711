"""Modules whose parameters are initialized from data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from invertible_attention._differentiation import functional_transforms_active

__all__ = ["SetFromData", "initializing"]


class SetFromData(nn.Module):
    """A module some of whose parameters are set from data: by its first batch in training mode, or when asked for.

    The buffer ``initialized`` is the only truth whether they are set. It is read before they are used, so that it does
    not matter which way a state came. It holds a number, not zero once they are set: averages of it, as of any other
    value of a state, say the same.

    Attributes:
        initialized: Not zero once the parameters are set.
        from_data: Names of the parameters, which are zero until they are set. None: there is nothing to set.
    """

    initialized: Tensor
    from_data: tuple[str, ...]

    _asked = False
    # The flag that a device was last asked for; see is_initialized.
    _read: Tensor | None = None

    @abstractmethod
    def _set(self, x: Tensor, mask: Tensor | None, reduce: Callable[[Tensor, str], Tensor]) -> None:
        """Set the parameters from ``x``; ``reduce(value, "SUM")`` is the value of all processes together."""

    @torch.no_grad()
    def initialize(self, x: Tensor, *, mask: Tensor | None = None) -> None:
        """Set the parameters from ``x`` where the mask is true, also if they are set.

        In a process group it sets those of this process alone: call it before
        :class:`torch.nn.parallel.DistributedDataParallel`, which gives every process what the first one has.

        Raises:
            RuntimeError: Where parameters cannot be set: inside a ``torch.func`` transform, or with tensors in place
                of the parameters.
        """
        if not self.from_data:
            return
        self._refuse_if_not_settable()
        self._set(x, mask, _of_this_process)
        self.initialized.fill_(1)

    def require_initialized(self, x: Tensor, mask: Tensor | None = None) -> None:
        """In training mode set the parameters from ``x`` unless they are set; in evaluation refuse.

        Parameters that are not zero were set by the caller, who omitted the flag: they stay. In a process group
        they are set from all processes' batches, so all must get here.

        Raises:
            RuntimeError: In evaluation; and as in :meth:`initialize`.
        """
        if self.is_initialized():
            return
        if not (self.training or self._asked):
            raise RuntimeError(self._remedy())
        self._refuse_if_not_settable()
        with torch.no_grad():
            if not any(bool(getattr(self, name).any()) for name in self.from_data):
                self._set(x, mask, _of_this_process if self._asked else _over_processes)
            self.initialized.fill_(1)

    def is_initialized(self) -> bool:
        """Whether the parameters are set.

        Reading a flag on a GPU waits for everything that was launched before. Once this very tensor was seen to be
        set, the device checks it instead, and fails if that is not so; a compiled function leaves it to the device too.

        Raises:
            RuntimeError: In a compiled function, if they are not set.
        """
        if not self.from_data:
            return True
        flag = self._buffers["initialized"]
        assert flag is not None
        if torch.compiler.is_compiling() or flag is self._read:
            torch._assert_async(flag, self._remedy())  # pyright: ignore[reportPrivateImportUsage]
            return True
        if torch._C._functorch.is_functorch_wrapped_tensor(flag):  # pyright: ignore[reportAttributeAccessIssue]
            return bool(_unwrapped(flag).all())
        if flag.is_meta or isinstance(flag, FakeTensor):
            return True  # no values, so nothing that could be wrong
        found = flag.item() != 0
        if found and flag.is_cuda:
            self._read = flag
        return found

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._read = None
        super()._load_from_state_dict(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    def _remedy(self) -> str:
        return (
            f"{type(self).__name__} is not initialized: {self._names()} set from data, in training mode or by "
            "initialize(x). Call initialize(x) of the model on training data first. If its parameters were copied from "
            "elsewhere, copy the buffer `initialized` too"
        )

    def _refuse_if_not_settable(self) -> None:
        if functional_transforms_active():
            place = "inside a torch.func transform"
        elif not all(isinstance(self._parameters.get(name), nn.Parameter) for name in self.from_data):
            place = "in functional_call, in a replica of nn.DataParallel, or under a parametrization"
        else:
            return
        raise RuntimeError(
            f"{type(self).__name__} is not initialized: {self._names()} set from data, which cannot happen {place}: "
            "call the module once on data in training mode, or its initialize(x), before"
        )

    def _names(self) -> str:
        return " and ".join(self.from_data) + (" is" if len(self.from_data) == 1 else " are")


@contextmanager
def initializing(module: nn.Module) -> Iterator[None]:
    """Within the block, let parts that are not initialized set themselves from what they are given, in either mode."""
    parts = [part for part in module.modules() if isinstance(part, SetFromData)]
    for part in parts:
        part._asked = True
    try:
        yield
    finally:
        for part in parts:
            part._asked = False


def _of_this_process(value: Tensor, operation: str) -> Tensor:
    return value


def _over_processes(value: Tensor, operation: str) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value, op=getattr(dist.ReduceOp, operation))
    return value


def _unwrapped(tensor: Tensor) -> Tensor:
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor
