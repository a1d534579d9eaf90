"""Costs of programs against what the sizes of their arrays say."""

import jax
import jax.numpy as jnp
from benchmarks.program_cost import product_operations, program_cost

ROWS, WIDTH = 32, 8
X = jnp.ones((ROWS, WIDTH))
KERNEL = jnp.ones((WIDTH, 4))


def test_a_product_costs_two_operations_per_triple():
    cost = program_cost(jax.jit(lambda x, kernel: x @ kernel), X, KERNEL)
    assert cost.products == 2 * ROWS * WIDTH * 4
    assert cost.argument_bytes == 4 * (ROWS * WIDTH + WIDTH * 4)
    assert cost.output_bytes == 4 * ROWS * 4
    assert cost.operations >= cost.products


def test_a_loop_counts_as_often_as_it_runs():
    @jax.jit
    def blocks(x, kernel):
        return jax.lax.map(jax.jit(lambda block: block @ kernel), x.reshape(4, -1, WIDTH))

    assert program_cost(blocks, X, KERNEL).products == 2 * ROWS * WIDTH * 4


def test_of_two_branches_the_dearer_counts():
    @jax.jit
    def either(x, kernel):
        return jax.lax.cond(
            x[0, 0] > 0, lambda: x @ kernel, lambda: (x @ kernel) @ kernel.T @ kernel
        )

    one = 2 * ROWS * WIDTH * 4
    assert program_cost(either, X, KERNEL).products == 3 * one


def test_a_loop_of_unknown_length_counts_as_often_as_said():
    @jax.jit
    def powers(x, kernel, number):
        return jax.lax.fori_loop(0, number, lambda _, total: total + x @ kernel, X[:, :4])

    one, number = 2 * ROWS * WIDTH * 4, jnp.int32(5)
    assert program_cost(powers, X, KERNEL, number).products == one
    jaxpr = powers.trace(X, KERNEL, number).jaxpr
    assert product_operations(jaxpr, loop_runs=5) == 5 * one
