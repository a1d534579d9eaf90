"""Both sides: operations and bytes of a compiled program, by analysis and without a clock."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class ProgramCost(NamedTuple):
    """Operations and bytes of one run of a program."""

    products: float
    """Multiplications and additions of its matrix products. A loop counts as often as it runs. If
    the number of runs depends on the data, it counts once, and this is a lower bound."""
    operations: float
    """All floating-point operations, as the compiler counts them: every loop body once."""
    bytes_accessed: float
    """Bytes read and written, as the compiler counts them: every loop body once."""
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    """Memory beside arguments and results."""


def program_cost(function: Any, *arguments: Any) -> ProgramCost:
    """Compiles a jitted function for some arguments and reads off what it costs.

    Args:
      function: what `jax.jit` gives.
      arguments: what it would be called with; they are not changed.
    """
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    # Some backends have no analysis.
    counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return ProgramCost(
        products=product_operations(traced.jaxpr),
        operations=counted.get("flops", 0.0),
        bytes_accessed=counted.get("bytes accessed", 0.0),
        argument_bytes=getattr(memory, "argument_size_in_bytes", 0),
        output_bytes=getattr(memory, "output_size_in_bytes", 0),
        temporary_bytes=getattr(memory, "temp_size_in_bytes", 0),
    )


def product_operations(jaxpr: Any, loop_runs: int = 1) -> float:
    """Multiplications and additions of the matrix products of a jaxpr; see `ProgramCost`.

    Loops whose number of runs depends on the data count `loop_runs` times.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * length * math.prod(equation.outvars[0].aval.shape)
            continue
        name, parameters = equation.primitive.name, equation.params
        within = [product_operations(inner, loop_runs) for inner in _inner_jaxprs(parameters)]
        runs = loop_runs if name == "while" else parameters.get("length", 1)
        total += max(within, default=0.0) if name == "cond" else runs * sum(within)
    return total


def _inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                yield one
