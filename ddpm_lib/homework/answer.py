"""A student's answer, as it is examined: whatever it returns is a plain tensor or number."""

import functools
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """The value, where a subclass of a tensor, an array or a number becomes the thing itself; tuples part by part.

    A subclass may say of itself that it differs from nothing by 0.
    """
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if isinstance(value, Tensor) and type(value) is not Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor) if type(value) is not torch.nn.Parameter else value
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        return np.ndarray.view(value, np.ndarray)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return float.__float__(value)
    if isinstance(value, int) and not isinstance(value, (bool, np.generic)):
        return int.__int__(value)
    return value


def examined(answer: Any) -> Any:
    """The answer; a function returns plain results."""
    if not isinstance(answer, (types.FunctionType, functools.partial)):
        return answer

    @functools.wraps(answer)
    def call(*args: Any, **options: Any) -> Any:
        return plain(answer(*args, **options))

    return call
