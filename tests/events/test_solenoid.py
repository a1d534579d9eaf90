"""The field of the solenoid: against the closed form on its axis, and Maxwell's equations."""

import numpy as np
import pytest

from hypertrack_jax.events.solenoid import CENTRE, HALF_LENGTH, RADIUS, solenoid_field


def test_the_field_on_the_axis_is_that_of_a_thin_coil():
    z = np.linspace(-4000, 4000, 17)
    along_r, along_z = solenoid_field(np.zeros(17), z)
    ends = z + HALF_LENGTH, z - HALF_LENGTH
    cosines = [end / np.hypot(end, RADIUS) for end in ends]
    expected = CENTRE * (cosines[0] - cosines[1]) / 2 * np.hypot(HALF_LENGTH, RADIUS) / HALF_LENGTH
    np.testing.assert_allclose(along_z, expected, atol=1e-4)
    np.testing.assert_allclose(along_r, 0, atol=1e-5)


@pytest.mark.parametrize(("r", "z"), [(300.0, 1500.0), (1000.0, 2500.0), (500.0, -2900.0)])
def test_the_field_has_neither_sources_nor_curls(r, z):
    def field(dr, dz):
        return np.array(solenoid_field(np.array([r + dr]), np.array([z + dz])))[:, 0]

    by_r, by_z = (field(1, 0) - field(-1, 0)) / 2, (field(0, 1) - field(0, -1)) / 2
    assert abs(by_z[1]) > 1e-4
    np.testing.assert_allclose(by_r[0] + field(0, 0)[0] / r + by_z[1], 0, atol=1e-7)
    np.testing.assert_allclose(by_z[0], by_r[1], atol=1e-7)
    mirrored = solenoid_field(np.array([r]), np.array([-z]))
    np.testing.assert_allclose(np.ravel(mirrored), field(0, 0) * [-1, 1])
