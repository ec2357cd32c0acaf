"""JAX arrays: views of their memory, and callbacks where JAX traces."""

import sys
from functools import lru_cache
from typing import Any

import numpy as np

import pysoftmax
from pysoftmax._dispatch import IMMEDIATE
from pysoftmax.adapters import gradients
from pysoftmax.adapters.memory import CPU, CUDA, OUTPUTS, Memory, from_dlpack
from pysoftmax.backends import Array

PLATFORMS = {"cpu": CPU, "cuda": CUDA, "gpu": CUDA}


class Jax(Memory):
    """Arrays on a CPU through NumPy, on a CUDA device through CuPy.

    Within ``jit``, ``grad`` and ``vmap`` the same functions are called back when the program
    runs. float64 exists where JAX has it: without ``jax_enable_x64`` it comes back as float32.
    """

    name = library = "jax"

    def recognises(self, array: Any) -> bool:
        """Whether `array` is JAX's or traced by it; JAX is imported if there is one."""
        jax = sys.modules.get("jax")
        return jax is not None and isinstance(array, jax.Array)

    def view(self, array: Any) -> Array:
        """The memory of an array on one device; it is read-only."""
        if len(array.devices()) > 1:
            raise TypeError("expected an array on one device")
        if array.device.platform == "cpu":
            return np.asarray(array)
        return from_dlpack(array, PLATFORMS.get(array.device.platform, 0))

    def device(self, array: Any) -> str:
        """The devices of an array; the same for all that is traced."""
        traced = isinstance(array, sys.modules["jax"].core.Tracer)
        return "a traced device" if traced else ", ".join(sorted(map(str, array.devices())))

    def wrap(self, result: Array, like: Any) -> Any:
        """`result` as JAX's, on the device of `like`, float64 as JAX has it."""
        jax = sys.modules["jax"]
        if isinstance(result, np.ndarray):
            return jax.device_put(result, like.device)
        return jax.numpy.from_dlpack(result)

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function`, called back if JAX traces."""
        jax = sys.modules["jax"]
        for name in OUTPUTS:
            if arguments.get(name) is not None:
                raise TypeError(f"{name}: JAX's arrays cannot be written to")
        if any(isinstance(array, jax.core.Tracer) for array in arguments.values()):
            if function in IMMEDIATE:
                raise TypeError(f"{function} needs the numbers: call it outside of jit and grad")
            return self._traced(function, arguments)
        return super().call(function, arguments)

    def _traced(self, function: str, arguments: dict[str, Any]) -> Any:
        """The public `function` as an operation of a traced program, with its gradient."""
        jax: Any = sys.modules["jax"]
        given = {name: a for name, a in arguments.items() if self.recognises(a)}
        others = {name: _frozen(a) for name, a in arguments.items() if name not in given}
        known = gradients.ARGUMENT.get(function)

        def call_back(step: str, **arrays: Any) -> Any:
            kinds = tuple((n, a.shape, np.dtype(a.dtype)) for n, a in arrays.items())
            shapes = _shapes(
                step, function, kinds, tuple(others.items()), jax.config.jax_enable_x64
            )

            def run(*values: Any) -> Any:
                views = dict(zip(arrays, map(np.asarray, values), strict=True))
                results = _step(step, function, {**views, **others})
                return jax.tree.map(lambda a, shape: a.astype(shape.dtype), results, shapes)

            return jax.pure_callback(run, shapes, *arrays.values(), vmap_method="sequential")

        def value(arrays: dict[str, Any]) -> Any:
            return call_back("value", **arrays)

        if known not in given:
            return value(given)

        def forward(arrays: dict[str, Any]) -> Any:
            gradients.refuse(function, [name for name, a in arrays.items() if a.perturbed])
            plain = {name: a.value for name, a in arrays.items()}
            result, kept = call_back("forward", **plain)
            return result, (plain, kept)

        def backward(residuals: Any, g: Any) -> Any:
            arrays, kept = residuals
            g = g[0] if isinstance(g, tuple) else g
            if isinstance(g, jax.custom_derivatives.SymbolicZero):
                g = jax.numpy.zeros(g.shape, g.dtype)
            rest = {name: a for name, a in arrays.items() if name != known}
            gradient = call_back("backward", **rest, kept=kept, g=g)
            return ({**dict.fromkeys(rest), known: gradient.astype(arrays[known].dtype)},)

        differentiable = jax.custom_vjp(value)
        differentiable.defvjp(forward, backward, symbolic_zeros=True)
        return differentiable(given)


def _step(step: str, function: str, arguments: dict[str, Any]) -> Any:
    """What is called back: the value, the value and what its gradient needs, or the gradient."""
    if step == "value":
        return getattr(pysoftmax, function)(**arguments)
    if step == "forward":
        return gradients.forward(function, arguments)
    kept, g = arguments.pop("kept"), arguments.pop("g")
    return gradients.backward(function, arguments, kept, g)


@lru_cache(maxsize=256)
def _shapes(step: str, function: str, kinds: Any, others: Any, x64: bool) -> Any:
    """Shapes and dtypes of a step's results, found by a call with arrays of ones and labels 0.

    So arguments that do not fit are refused where the program is traced, with the error that
    they always get.
    """
    jax: Any = sys.modules["jax"]
    arrays = {
        name: np.broadcast_to(np.asarray(dtype.kind not in "iu", dtype), shape)
        for name, shape, dtype in kinds
    }
    results = _step(step, function, {**arrays, **dict(others)})

    def structure(result: Any) -> Any:
        double = result.dtype == np.float64 and not x64
        return jax.ShapeDtypeStruct(result.shape, np.float32 if double else result.dtype)

    return jax.tree.map(structure, results)


def _frozen(value: Any) -> Any:
    """Lists as tuples, which have a hash."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


adapter = Jax()
