"""Writes graph constructors exactly as the published program does."""

import pickle

import numpy as np
from scipy import sparse


def content_of(dense, centroids, node2node="hyper"):
    """The dict that the published program pickles."""
    connected = sparse.csr_matrix(dense.astype(bool))
    num_cells = len(centroids)
    return {
        "ncell": num_cells,
        "ncell3": 3,
        "centroids": centroids.astype(np.float32),
        "centroids3": centroids[:3].astype(np.float32),
        "C": connected,
        "C3": sparse.csr_matrix(np.eye(3, dtype=bool)),
        "node2node": node2node,
        "nhits": np.int64(1000),
    }


def random_content(seed=0, num_cells=40, fill=0.2):
    """Random cells with a random symmetric C."""
    rng = np.random.default_rng(seed)
    half = rng.random((num_cells, num_cells)) < fill
    return content_of(half | half.T, rng.normal(0, 300, (num_cells, 3)))


def write(path, content, protocol=4):
    """Pickles a dict."""
    path.write_bytes(pickle.dumps(content, protocol))
    return path
