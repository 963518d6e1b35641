"""What is stored of rows: values, codes and scales to the half step, also where a row is not finite, zero or tiny."""

from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from extraction.format.dtypes import LARGEST_CODE, STORE_DTYPES
from extraction.models.capture_plan import Buffer, Capture
from extraction.models.compaction import Compaction
from extraction.models.mesh import MeshShape
from extraction.models.sharding import Layout, mesh_of
from extraction.models.step_output import StepOutput

pytestmark = pytest.mark.slow

N, WIDTH = 12, 32
NAN, INF, ZERO, TINY, HUGE = range(5)
SCALED = sorted(LARGEST_CODE)
MESH = mesh_of(MeshShape(1, 1), jax.devices())


def make_rows() -> np.ndarray:
    """Ten rows, the first five of them odd, and two of padding that nothing may know of."""
    rows = np.random.default_rng(0).standard_normal((N, WIDTH)).astype(np.float32)
    rows[NAN, 3], rows[INF, 4] = np.nan, -np.inf
    rows[ZERO], rows[TINY], rows[HUGE, 7] = 0.0, 1e-37, 40000.0
    rows[10:] = 1e6
    return rows


@cache
def compiled_store(dtype: str):
    return jax.jit(Compaction(dtype, 2, Layout(MESH)).to_stored)


def stored(rows: np.ndarray, dtype: str):
    """Values as they are read, codes, and what is known of the first ten rows."""
    with jax.set_mesh(MESH):
        found = compiled_store(dtype)(jnp.asarray(rows)[None], jnp.array([10], jnp.int32))
    buffer, stacked = Buffer("x", WIDTH), jax.tree.map(lambda field: field[None], found)
    values, facts = StepOutput({buffer: stacked}, {"x": Capture(buffer, 0)}, [np.arange(10)]).get()
    return values["x"], np.asarray(found.values)[0, :10], facts["x"]


@pytest.mark.parametrize("dtype", STORE_DTYPES)
def test_statistics_are_of_the_values_as_they_are_read(dtype):
    """Of each row the norm and the maximum; the sums only of columns without NaN and infinity."""
    values, _, facts = stored(make_rows(), dtype)
    wide = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(facts.norms, np.linalg.norm(wide, axis=1), rtol=1e-6, atol=1e-18)
    finite = np.isfinite(wide).all(axis=1)
    np.testing.assert_allclose(facts.largest[finite], np.abs(wide[finite]).max(axis=1), atol=1e-36)
    columns = np.isfinite(wide).all(axis=0)
    assert columns.sum() == (0 if dtype in SCALED else WIDTH - 2)
    np.testing.assert_allclose(facts.sum[columns], wide.sum(0)[columns], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(facts.sum_of_squares[columns], (wide**2).sum(0)[columns], rtol=1e-5)


@pytest.mark.parametrize("dtype", SCALED)
def test_codes_are_the_nearest_and_use_the_whole_range(dtype):
    rows = make_rows()[:10]
    values, codes, facts = stored(make_rows(), dtype)
    good, largest = slice(HUGE, None), LARGEST_CODE[dtype]
    np.testing.assert_allclose(facts.scales[good], np.abs(rows[good]).max(axis=1) / largest, rtol=1e-6)
    assert (np.abs(codes[good].astype(np.float32)).max(axis=1) == largest).all()
    exact = rows[good] / facts.scales[good][:, None]
    nearest = np.round(exact) if dtype == "int8" else exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    off = codes[good].astype(np.float32) != nearest
    assert off.mean() < 0.02  # what lies half way to rounding may fall to either side
    step = 1.0 if dtype == "int8" else np.maximum(np.abs(exact) / 8, 2.0**-9)
    assert (np.abs(codes[good].astype(np.float32) - exact) <= 0.5001 * step).all()


@pytest.mark.parametrize("dtype", SCALED)
def test_odd_rows_are_told_by_their_scale(dtype):
    values, codes, facts = stored(make_rows(), dtype)
    assert np.isnan(facts.scales[[NAN, INF]]).all() and np.isnan(values[[NAN, INF]]).all()
    assert (facts.scales[[ZERO, TINY]] == 0).all() and (values[[ZERO, TINY]] == 0).all()
    assert (codes[[NAN, INF, ZERO, TINY]].astype(np.float32) == 0).all()


@pytest.mark.parametrize("dtype", SCALED)
def test_the_reconstruction_error_is_that_of_the_finite_rows(dtype):
    rows = make_rows()[:10].astype(np.float64)
    values, _, facts = stored(make_rows(), dtype)
    finite = np.isfinite(rows).all(axis=1)
    assert facts.power == pytest.approx((rows[finite] ** 2).sum(), rel=1e-6)
    assert facts.squared_error == pytest.approx(((values.astype(np.float64) - rows)[finite] ** 2).sum(), rel=1e-4)


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("size", [1e-25, 1e20, 1e30])
def test_the_reconstruction_error_of_rows_whose_squares_float32_does_not_hold(dtype, size):
    rows = np.random.default_rng(0).standard_normal(make_rows().shape).astype(np.float32)
    _, _, usual = stored(rows, dtype)
    _, _, facts = stored((rows * np.float32(size)).astype(np.float32), dtype)
    assert facts.squared_error / facts.power == pytest.approx(usual.squared_error / usual.power, rel=1e-2)


@pytest.mark.parametrize("dtype", STORE_DTYPES)
def test_padding_that_is_no_number_is_in_no_sum(dtype):
    """It is a copy of a slot, which may hold anything."""
    rows = make_rows()
    rows[:10], rows[10:] = 1.0, np.nan
    facts = stored(rows, dtype)[2]
    assert np.isfinite(facts.sum).all() and np.isfinite(facts.sum_of_squares).all()
