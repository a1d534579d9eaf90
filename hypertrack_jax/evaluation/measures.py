"""Host side: tracks by the measures that others use, for any labels of hits.

An efficiency depends on what counts as found, on which particles should be found, and on which hits
count. `MEASURES` has one entry for each choice, with a publication that uses it. The definitions
were compared with these programs:

- `score_event` in trackml/score.py of https://github.com/LAL/trackml-library: the weight of the
  hits that a track shares with its majority particle, if these are more than half of the hits of
  both. The same here.
- `tracking_metrics` in metrics/cluster_metrics.py of
  https://github.com/gnn-tracking/gnn_tracking: tracks of at least 3 hits; more than half of the
  track and of the particle; abs(eta) < 4. Differences: there pT may be equal to its bound; a
  particle is reconstructable by its layers, here by its hits; fakes are counted among tracks whose
  majority particle is within the cuts, here among all tracks.
- docs/performance/matching_definitions.md of
  https://github.com/HSF-reco-and-software-triggers/Tracking-ML-Exa.TrkX: the styles `two_way`, both
  fractions, and `ATLAS`, the fraction of the track alone. Difference: ATLAS's own matching gives
  hits of pixels more weight than those of strips; here all hits count alike.

The transformer of arXiv:2411.07149 has its own cuts (pT from 0.6 GeV), for which a `Measure` is
easily written. What a source leaves open, such as the fewest hits, is our choice: compare the
conditions before you compare numbers.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from hypertrack_jax.evaluation.metrics import SharedHits, shared_hits, track_scores
from hypertrack_jax.evaluation.tables import markdown_table, mean_and_spread
from hypertrack_jax.events.event import Event, choose_hits
from hypertrack_jax.events.kinematics import pseudorapidity

PIXEL_VOLUMES = (7, 8, 9)
"""Volumes of TrackML's detector that are pixels; other detectors have other numbers."""


class Measure(NamedTuple):
    """What counts as a track, as found, and as a particle that should be."""

    name: str
    min_hits: int
    """Fewest hits of a track that counts, and of a reconstructable particle."""
    match: Literal["double majority", "half"]
    """`double majority`: track and particle share more than half of the hits of each. `half`: at
    least half of the track's hits are the particle's."""
    source: str
    min_pt: float | None = None
    """The transverse momentum of a particle has to be above this, in GeV."""
    max_eta: float | None = None
    """Its absolute pseudorapidity has to be below this."""
    volumes: tuple[int, ...] | None = None
    """Volumes whose hits count; None for all. Tracks and particles have these hits alone."""


class Measured(NamedTuple):
    """The tracks of one event by one measure; None for a ratio over nothing."""

    efficiency: float | None
    """Reconstructable particles found over all reconstructable ones."""
    efficiency_generated: float | None
    """Particles found over all generated ones within the kinematic cuts, with or without hits."""
    fake_rate: float | None
    """Tracks that match no particle over all tracks."""
    duplicate_rate: float | None
    """Tracks of a particle that another track has found already, over all tracks."""


MEASURES = (
    Measure("ours: double majority, 4 hits", 4, "double majority", "HyperTrack, arXiv:2309.14113"),
    Measure(
        "double majority, 3 hits", 3, "double majority", "Exa.TrkX, arXiv:2103.06995, two-way match"
    ),
    Measure(
        "pixels, pT > 0.9 GeV, abs(eta) < 4",
        3,
        "double majority",
        "object condensation, arXiv:2312.03823",
        min_pt=0.9,
        max_eta=4.0,
        volumes=PIXEL_VOLUMES,
    ),
    Measure("ATLAS-like: half of the hits", 3, "half", "ATLAS GNN4ITk, hal-04803308"),
)
Measures: TypeAlias = dict[str, Measured | float | None]
"""The results for one event by the name of the measure; that of `TRACKML` is one number."""
TRACKML = "TrackML score"
_TRACKML_SOURCE = "TrackML, arXiv:1904.06778"


def measure_tracks(event: Event, hit_label: ArrayLike) -> Measures:
    """The tracks of an event by every measure of `MEASURES`, and the TrackML score.

    Args:
      event: the event, with truth.
      hit_label: track of each hit, as in `metrics.track_scores`.

    Returns:
      The results by name.

    Raises:
      UserError: the event has no truth, or the labels are not one integer per hit.
    """
    found: Measures = {
        TRACKML: track_scores(event, hit_label).trackml,
    }
    label = np.asarray(hit_label)
    for measure in MEASURES:
        found[measure.name] = _measured(measure, event, label)
    return found


def measures_table(events: Sequence[Measures]) -> str:
    """One line for each measure, in Markdown: mean and standard deviation over the events."""

    def line(name: str, values: Iterable[Iterable[float | None]], source: str) -> list[str]:
        return [name, *(mean_and_spread(column, 3) for column in values), source]

    lines = [
        line(
            measure.name,
            zip(*(event[measure.name] for event in events), strict=True),  # type: ignore[misc]
            measure.source,
        )
        for measure in MEASURES
    ]
    scores = [event[TRACKML] for event in events]
    lines.append(line(TRACKML, [scores, [], [], []], _TRACKML_SOURCE))  # type: ignore[list-item]
    heading = ["measure", "efficiency", "of generated", "fakes", "duplicates", "source"]
    return markdown_table(heading, lines)


def _measured(measure: Measure, event: Event, label: np.ndarray) -> Measured:
    if measure.volumes is not None:
        is_kept = np.isin(event.module[:, 0], measure.volumes)
        event, label = choose_hits(event, is_kept), label[is_kept]
    shared = shared_hits(event, label)
    is_selected = _selected(measure, event)
    is_track = shared.cluster_size >= measure.min_hits
    is_match = _matches(measure, shared) & is_track[shared.cluster]
    # One particle for each track: of two that have half of it each, the first one.
    tracks, first = np.unique(shared.cluster[is_match], return_index=True)
    particle = shared.particle[is_match][first]
    num_tracks, num_found = int(is_track.sum()), len(np.unique(particle))
    is_found = np.zeros(len(is_selected), bool)
    is_found[particle] = True
    is_reconstructable = is_selected & (shared.particle_size >= measure.min_hits)
    return Measured(
        efficiency=_share(is_found, is_reconstructable),
        efficiency_generated=_share(is_found, is_selected),
        fake_rate=1 - len(tracks) / num_tracks if num_tracks else None,
        duplicate_rate=(len(tracks) - num_found) / num_tracks if num_tracks else None,
    )


def _matches(measure: Measure, shared: SharedHits) -> Bool[np.ndarray, " pair"]:
    twice, size = 2 * shared.num_shared, shared.cluster_size[shared.cluster]
    if measure.match == "half":
        return twice >= size
    particle_size = shared.particle_size[shared.particle]
    is_long = particle_size >= measure.min_hits
    return (twice > size) & (twice > particle_size) & is_long


def _selected(measure: Measure, event: Event) -> Bool[np.ndarray, " particle"]:
    """The particles within the kinematic cuts; neutral ones only where they have hits."""
    is_selected = (event.particles.charge != 0) | (event.particles.num_hits > 0)
    momentum = event.particles.momentum.astype(np.float64)
    if measure.min_pt is not None:
        is_selected &= np.hypot(momentum[:, 0], momentum[:, 1]) > measure.min_pt
    if measure.max_eta is not None:
        is_selected &= np.abs(pseudorapidity(momentum)) < measure.max_eta
    return is_selected


def _share(is_found: np.ndarray, is_wanted: np.ndarray) -> float | None:
    return float(is_found[is_wanted].mean()) if is_wanted.any() else None
