"""The published tune: M. Mieskolainen, "HyperTrack", arXiv:2309.14113, `tune-5`."""

from hypertrack_jax.tunes.tune import Tune

TUNE = Tune(name="tune-5")
