"""A fitted scikit-learn estimator as plain JSON and tensors, and back, without pickle.

An estimator is a class and a `__dict__`. The class is stored by name and looked up inside scikit-learn only; the
attributes are stored recursively, arrays as tensors. Rebuilding creates the object without calling its constructor,
so a file can name no function, run no code and import nothing from outside scikit-learn.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from qfml.errors import CheckpointError

__all__ = ["decode_estimator", "encode_estimator"]

_MODULE = re.compile(r"sklearn(\.[a-z_][a-z0-9_]*)+")
_NOT_ESTIMATORS = {"_build_utils", "conftest", "datasets", "experimental", "externals", "tests"}


def encode_estimator(estimator: BaseEstimator) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write a scikit-learn estimator as plain JSON and a dict of tensors.

    Returns:
        The meta data (JSON types only) and the arrays it refers to by key.

    Raises:
        CheckpointError: the estimator, or one of its attributes, cannot be stored; the message names it.

    Example:
        >>> from sklearn.preprocessing import StandardScaler
        >>> meta, state = encode_estimator(StandardScaler().fit([[1.0], [3.0]]))
        >>> float(decode_estimator(meta, state).transform([[5.0]])[0, 0])
        3.0
    """
    encoder = _Encoder()
    try:
        meta = encoder.estimator(estimator, type(estimator).__name__)
    except RecursionError:
        raise CheckpointError(f"`{type(estimator).__name__}` refers to itself and cannot be stored") from None
    return meta | {"sklearn": sklearn.__version__}, encoder.state


def decode_estimator(meta: Any, state: Mapping[str, Tensor]) -> BaseEstimator:
    """Rebuild what `encode_estimator` wrote, bit for bit; instantiates classes of scikit-learn only.

    Raises:
        CheckpointError: `meta` names anything that is not a scikit-learn estimator, or does not fit `state`.
    """
    if not isinstance(meta, Mapping) or "estimator" not in meta:
        raise CheckpointError(f"expected the stored form of a scikit-learn estimator, got {_shown(meta)}")
    written = str(meta.get("sklearn"))
    if written.split(".")[:2] != sklearn.__version__.split(".")[:2]:
        warnings.warn(
            f"a transform was fitted with scikit-learn {written} and is loaded with {sklearn.__version__}: "
            "its output may differ; install the former, or fit again",
            stacklevel=2,
        )
    try:
        return _decode({key: item for key, item in meta.items() if key != "sklearn"}, state)
    except RecursionError:
        raise CheckpointError("the stored estimator is nested too deeply") from None


class _Encoder:
    """Walks an estimator's attributes; arrays go to `state` under running numbers."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def estimator(self, value: BaseEstimator, place: str) -> dict[str, Any]:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        try:
            _find_class(name)
        except CheckpointError as error:
            raise CheckpointError(f"`{place}` cannot be stored: {error}") from None
        attributes = {key: self.value(item, f"{place}.{key}") for key, item in sorted(vars(value).items())}
        return {"estimator": name, "attributes": attributes}

    def value(self, value: Any, place: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, BaseEstimator):
            return self.estimator(value, place)
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.value(item, f"{place}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, dict):  # a subclass (scikit-learn's Bunch) holds nothing but its items
            pairs = [[self.value(k, f"{place} key"), self.value(v, f"{place}[{k!r}]")] for k, v in value.items()]
            return {"dict": pairs}
        if type(value) is slice:
            return {"slice": [self.value(item, place) for item in (value.start, value.stop, value.step)]}
        if isinstance(value, type) and issubclass(value, np.generic):
            return {"numpy_type": np.dtype(value).name}
        if isinstance(value, np.dtype) and value.isbuiltin:
            return {"dtype": value.name}
        if type(value) is np.random.RandomState:
            return {"random_state": self.value(value.get_state(), place)}
        if isinstance(value, np.generic) or type(value) is np.ndarray:
            return self.array(value, place)
        raise CheckpointError(
            f"`{place}` is a {type(value).__name__}, which cannot be stored without pickle; "
            "use a transformer whose fitted state is numbers, strings and arrays"
        )

    def array(self, value: Any, place: str) -> Any:
        array, scalar = np.asarray(value), isinstance(value, np.generic)
        if array.dtype.kind in "OU":
            items = [self.value(item, f"{place}[{i}]") for i, item in enumerate(array.ravel().tolist())]
            return {"objects": items, "shape": list(array.shape), "dtype": array.dtype.str, "scalar": scalar}
        # the memory order is kept: a matrix product may round differently on a transposed layout
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        try:
            tensor = torch.from_numpy(np.array(array.T if fortran else array, order="C"))
        except TypeError:
            raise CheckpointError(f"`{place}` has dtype {array.dtype}, which cannot be stored as a tensor") from None
        key = f"array{len(self.state)}"
        self.state[key] = tensor
        return {"array": key, "fortran": fortran, "scalar": scalar}


def _decode(meta: Any, state: Mapping[str, Tensor]) -> Any:
    if meta is None or isinstance(meta, (bool, int, float, str)):
        return meta
    if not isinstance(meta, Mapping):
        raise CheckpointError(f"the stored estimator holds {_shown(meta)}, which is not of a known form")
    try:
        return _DECODERS[frozenset(meta)](meta, state)
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"the stored estimator holds {_shown(meta)}, which is not of a known form") from None


def _decode_estimator(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> BaseEstimator:
    cls = _find_class(meta["estimator"])
    estimator = cls.__new__(cls)
    for key, item in meta["attributes"].items():
        # an attribute that hides a method or a dunder would change what the class does
        own = inspect.getattr_static(cls, str(key), None)
        hides = callable(own) or hasattr(own, "__get__")
        if not isinstance(key, str) or not key.isidentifier() or key.startswith("__") or hides:
            raise CheckpointError(f"{cls.__name__} has no storable attribute {_shown(key)}")
        vars(estimator)[key] = _decode(item, state)
    return estimator


def _decode_array(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    array = state[meta["array"]].detach().cpu().numpy().copy()
    if meta["scalar"]:
        return array[()]
    return array.T if meta["fortran"] else array


def _decode_objects(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    if not re.fullmatch(r"[|<>=](O|U\d{1,4})", meta["dtype"]):
        raise CheckpointError(f"an array of strings or objects cannot have dtype {_shown(meta['dtype'])}")
    array = np.empty(len(meta["objects"]), dtype=meta["dtype"])
    for i, item in enumerate(meta["objects"]):
        array[i] = _decode(item, state)
    array = array.reshape(meta["shape"])
    return array[()] if meta["scalar"] else array


def _decode_dtype(name: str) -> np.dtype[Any]:
    if not re.fullmatch(r"(float|u?int|complex)\d{1,3}|bool", name):
        raise CheckpointError(f"{_shown(name)} is not a numeric type of numpy")
    return np.dtype(name)


def _decode_random_state(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> np.random.RandomState:
    generator = np.random.RandomState(0)
    generator.set_state(_decode(meta["random_state"], state))
    return generator


def _decode_float(meta: Mapping[str, Any], _: Mapping[str, Tensor]) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[meta["float"]]


_DECODERS = {
    frozenset({"estimator", "attributes"}): _decode_estimator,
    frozenset({"array", "fortran", "scalar"}): _decode_array,
    frozenset({"objects", "shape", "dtype", "scalar"}): _decode_objects,
    frozenset({"numpy_type"}): lambda meta, _: _decode_dtype(meta["numpy_type"]).type,
    frozenset({"dtype"}): lambda meta, _: _decode_dtype(meta["dtype"]),
    frozenset({"random_state"}): _decode_random_state,
    frozenset({"float"}): _decode_float,
    frozenset({"list"}): lambda meta, state: [_decode(item, state) for item in meta["list"]],
    frozenset({"tuple"}): lambda meta, state: tuple(_decode(item, state) for item in meta["tuple"]),
    frozenset({"dict"}): lambda meta, state: {_decode(key, state): _decode(item, state) for key, item in meta["dict"]},
    frozenset({"slice"}): lambda meta, state: slice(*(_decode(item, state) for item in meta["slice"])),
}


def _find_class(name: Any) -> type[BaseEstimator]:
    """The estimator class of that full name, defined (not merely visible) in a module of scikit-learn."""
    module_name, _, class_name = str(name).rpartition(".")
    refused = CheckpointError(f"{_shown(name)} is not an estimator of scikit-learn")
    if not _MODULE.fullmatch(module_name) or _NOT_ESTIMATORS & set(module_name.split(".")):
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError:
        raise refused from None
    if not (isinstance(found, type) and issubclass(found, BaseEstimator) and found.__module__ == module_name):
        raise refused
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
