"""`python -m hypertrack_jax` is the command `hypertrack`."""

from hypertrack_jax.command.main import main

main()
