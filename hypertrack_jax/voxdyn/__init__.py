"""Hits to candidate edges: the Voxel-Dynamics graph constructor."""
