"""Events on the workers of a cluster: each once, also where a worker is lost."""

import sys
import threading

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.places import find_events
from hypertrack_jax.events.store import save_event

distributed = pytest.importorskip("distributed", reason="needs the extra cluster")
cluster_files = pytest.importorskip("hypertrack_jax.evaluation.cluster_files")

FATAL, BAD = 13, 17
"""Numbers of hits: of an event that ends the worker that tries it first, and of one that nobody can
do."""


@pytest.fixture
def log():
    """What happens on the workers, which are threads of this process."""
    return {"loaded": [], "lost": [], "done": []}


def finder(log):
    """A model that makes one track of all hits, loaded on a worker."""
    log["loaded"].append(threading.get_ident())

    def find(position):
        if len(position) == BAD:
            raise UserError("nobody can do it")
        if len(position) == FATAL and not log["lost"]:
            worker = distributed.get_worker()
            log["lost"].append(worker.address)
            closed = threading.Event()
            worker.loop.add_callback(end, worker, closed)
            closed.wait()
        log["done"].append(len(position))
        none = np.zeros(0, np.int32)
        sure = np.ones(len(position), np.float32)
        return Tracks(np.zeros(len(position), np.int32), sure, none, none, sure[:0], {})

    return find


async def end(worker, closed):
    """A worker goes without a word to its tasks."""
    await worker.close(executor_wait=False)
    closed.set()


def cut(event, num_hits):
    """The first hits of an event."""
    names = ("position", "hit_id", "hit_particle", "hit_weight", "module")
    return event._replace(**{name: getattr(event, name)[:num_hits] for name in names})


def test_a_lost_worker_s_events_are_done_again_and_none_twice(tmp_path, log, monkeypatch):
    sizes = [11, 12, FATAL, 14, 15, 16, BAD, 18]
    for number, size in enumerate(sizes):
        event = cut(helix_event(0, 5, event_id=1), size)
        save_event(tmp_path / "data", event._replace(event_id=number))
    problems = []
    # By name and not by value: the threads share this log.
    monkeypatch.setitem(sys.modules, "shared_log", log)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        rows = cluster_files.reconstruct_on_cluster(
            cluster.scheduler_address,
            lambda: finder(sys.modules["shared_log"]),
            find_events([tmp_path / "data"]),
            tmp_path / "found",
            4,
            problems,
        )
        rows = sorted(rows, key=lambda row: row["event"])
    good = [number for number, size in enumerate(sizes) if size != BAD]
    assert [row["event"] for row in rows] == good
    assert [row["hits"] for row in rows] == [sizes[number] for number in good]
    assert problems == ["event 6: nobody can do it"]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        f"event{number:09d}-submission.csv" for number in good
    ]
    assert len(log["lost"]) == 1
    # Once on each worker; what ran on the lost one ran twice.
    assert len(log["loaded"]) == 2
    assert log["done"].count(FATAL) == 2


def test_a_scheduler_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_files, "PATIENCE", 0.2)
    rows = cluster_files.reconstruct_on_cluster("tcp://127.0.0.1:9", list, [], tmp_path, 4, [])
    with pytest.raises(UserError, match=r"tcp://127\.0\.0\.1:9: no scheduler of dask"):
        next(rows)
