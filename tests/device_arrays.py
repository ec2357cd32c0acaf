"""Arrays like CuPy's, in the memory of the CPU: for what a GPU would refuse.

NumPy's functions take them and give them back, but no array of NumPy's goes with one, and none
becomes one unasked. Where CuPy is installed, a function that it lacks is refused too.
"""

import importlib.util
import types

import numpy as np

from pysoftmax.backends import Backend
from pysoftmax.backends import numpy as numpy_backend


def _offered():
    """The names of CuPy's functions, if it is there; it needs no GPU to tell."""
    return vars(importlib.import_module("cupy")) if importlib.util.find_spec("cupy") else None


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of a device."""

    __array_priority__ = 100

    def __init__(self, values):
        self.values = values

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *arguments, **options):
        return _on_the_device(getattr(ufunc, method), arguments, options)

    def __array_function__(self, function, _, arguments, options):
        offered = _offered()
        if offered is not None and function.__name__ not in offered:
            return NotImplemented
        if function is np.asarray:  # the way onto the device
            arguments = tuple(map(_boxed, arguments))
        return _on_the_device(function, arguments, options)

    def __getattr__(self, name):
        attribute = getattr(self.values, name)
        if not callable(attribute):
            return _boxed(attribute)
        return lambda *arguments, **options: _on_the_device(attribute, arguments, options)

    def __getitem__(self, index):
        return _on_the_device(self.values.__getitem__, (index,), {})

    def __setitem__(self, index, value):
        _on_the_device(self.values.__setitem__, (index, value), {})

    def __len__(self):
        return len(self.values)

    def __bool__(self):
        return bool(self.values)

    def __int__(self):
        return int(self.values)

    def __float__(self):
        return float(self.values)


def _on_the_device(function, arguments, options):
    return _boxed(function(*_unboxed(arguments), **_unboxed(options)))


def _unboxed(value):
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return _inside(value)


def _inside(value):
    """NumPy's arrays in place of those of the device, in whatever holds them."""
    if isinstance(value, DeviceArray):
        return value.values
    if isinstance(value, list | tuple):
        return type(value)(map(_unboxed, value))
    if isinstance(value, dict):
        return {name: _unboxed(one) for name, one in value.items()}
    return value


def _boxed(value):
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, np.bool_):
        return DeviceArray(np.asarray(value))
    return type(value)(map(_boxed, value)) if isinstance(value, list | tuple) else value


class _Namespace:
    """The functions of a module, for arrays of the device."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        function = getattr(self.module, name)
        return lambda *arguments, **options: _on_the_device(function, arguments, options)


def _backend():
    """A backend of the kernels for NumPy."""
    backend = types.ModuleType("device_arrays")
    for name in vars(Backend):
        if name[0] != "_":
            setattr(backend, name, _Namespace(numpy_backend).__getattr__(name))
    backend.name = backend.library = "device"
    backend.namespace = _Namespace(np)
    backend.recognises = backend.can_be_written = lambda array: isinstance(array, DeviceArray)
    return backend


backend = _backend()
