"""HyperTrack in JAX: hits of a particle detector in, particle tracks out."""
