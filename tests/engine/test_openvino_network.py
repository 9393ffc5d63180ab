"""Compiled graphs: their two ways of computing a batch, and inference requests."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import small

from service.engine import openvino_graph, openvino_network
from service.engine.openvino_api import openvino
from service.engine.openvino_network import CompiledGraph, Network
from service.imaging.crops import CROP


def graph() -> openvino.Model:
    """The graph of a toy, from pixels to probabilities."""
    model = small.converted(small.toy())
    return openvino_graph.probabilities(model.served, model.manifest.preprocessing, 1.0, np.uint8)


def pixels(rows: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Make random views; each is of about one colour."""
    made = np.random.default_rng(seed)
    colours = made.integers(30, 226, (rows, 1, 1, 3))
    return (colours + made.integers(-30, 31, (rows, CROP, CROP, 3))).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "cores", "expected"),
    [
        (1, 1, 1),
        (5, 1, 2),
        (1, 2, 1),
        (4, 2, 2),
        (8, 2, 2),
        (9, 2, 4),  # not 3: each core has as many
        (16, 2, 4),
        (16, 8, 8),
        (3, 16, 3),
        (16, 16, 16),
    ],
)
def test_parts(rows: int, cores: int, expected: int) -> None:
    assert openvino_network.parts(rows, cores) == expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_has_the_same_outputs_in_both_ways(threads: int, *, alone: bool) -> None:
    network = Network(graph(), "f32", threads)
    whole = CompiledGraph(graph(), "f32", threads=1)
    for rows in (1, 2, 3, 4, 13, 16):
        asked = pixels(rows)
        (expected,), (found,) = whole.infer([asked]), network.infer(asked, alone=alone)
        assert expected.shape == (rows, 3)
        assert found == pytest.approx(expected, abs=1e-6)


def test_threads_get_the_outputs_of_their_own_rows() -> None:
    network = Network(graph(), "f32", 2)
    batches = [pixels(1 + seed, seed) for seed in range(16)]
    expected = [network.infer(each)[0] for each in batches]
    assert np.ptp([each[0, 0] for each in expected]) > 0.1
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(lambda each: network.infer(each, alone=False)[0], 8 * batches)]
    for one, other in zip(found, 8 * expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_outputs_are_not_overwritten() -> None:
    compiled = CompiledGraph(graph(), "f32", threads=1)
    (first,) = compiled.infer([pixels(2)])
    before = first.copy()
    assert np.abs(compiled.infer([pixels(2, seed=1)])[0] - before).max() > 0.01
    assert np.array_equal(first, before)


def test_a_part_that_fails_fails_the_batch_and_no_other() -> None:
    compiled = CompiledGraph(graph(), "f32", threads=2, streams=2)
    good = pixels(4)
    (expected,) = compiled.infer([good])
    with pytest.raises(RuntimeError):
        compiled.infer([good, good[..., :2]])  # views of two channels
    assert compiled.infer([good, good])[0] == pytest.approx(np.tile(expected, (2, 1)), abs=1e-6)
