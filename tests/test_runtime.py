"""The device: which one, its share, in what precision, in which batch sizes, and what it costs."""

import threading
import time
from collections.abc import Callable

import pytest
import torch
from conftest import needs_gpu

from service import runtime
from service.errors import ModelError, OutOfMemory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("choice", "gpus", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 1, ["cuda:0"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cpu", 0, ["cpu"]),
        ("cpu", 2, ["cpu"]),
        ("cuda", 1, ["cuda:0"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda:0", 1, ["cuda:0"]),
        ("cuda:0", 2, ["cuda:0"]),
        ("cuda:1", 2, ["cuda:1"]),
    ],
)
def test_a_choice_becomes_devices(choice: str, gpus: int, expected: list[str]) -> None:
    assert [str(device) for device in runtime.devices(choice, gpus)] == expected


@pytest.mark.parametrize("choice", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_where_there_is_none_is_refused_with_what_to_do(choice: str) -> None:
    with pytest.raises(ModelError, match=f"there is no GPU for device '{choice}'; use auto or cpu"):
        runtime.devices(choice, 0)


@pytest.mark.parametrize(("choice", "gpus"), [("cuda:1", 1), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(choice: str, gpus: int) -> None:
    with pytest.raises(ModelError, match=f"there is no '{choice}': this machine's {gpus} GPUs"):
        runtime.devices(choice, gpus)


def test_a_precision_is_what_is_asked_for_and_auto_allows_all() -> None:
    assert runtime.precisions("bfloat16") == (torch.bfloat16,)
    assert runtime.precisions("auto") == tuple(runtime.PRECISIONS.values())
    assert torch.float32 in runtime.precisions("auto")


def test_without_onednn_a_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = torch.nn.Conv2d(3, 4, 1)
    assert runtime.place(network, CPU, torch.bfloat16, [], None) is network
    assert network.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "max_batch", "expected"),
    [
        ("cpu", 0, (1, 2, 4, 8, 16)),
        ("cuda", 0, (1, 2, 4, 8, 16, 32, 64)),
        ("cpu", 1, (1,)),
        ("cpu", 2, (1, 2)),
        ("cpu", 3, (1, 2, 3)),
        ("cpu", 64, (1, 2, 4, 8, 16, 32, 64)),
        ("cuda", 48, (1, 2, 4, 8, 16, 32, 48)),
    ],
)
def test_sizes_are_powers_of_two_and_the_most(
    device: str, max_batch: int, expected: tuple[int, ...]
) -> None:
    assert runtime.sizes(torch.device(device), max_batch) == expected


def test_a_forward_on_the_cpu_keeps_no_gradients() -> None:
    forward = runtime.forwards(CPU)
    for _ in range(2):  # a context for every run
        with forward():
            assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forward_on_the_cpu_has_its_share_of_the_threads(threads: int) -> None:
    before = torch.get_num_threads()

    def forward() -> int:
        with runtime.forwards(CPU, threads)():
            return torch.get_num_threads()

    assert runtime.compute(forward) == threads
    assert torch.get_num_threads() == before  # whose thread is another


def test_a_forward_without_a_share_has_the_threads_that_there_are() -> None:
    def forward() -> tuple[int, int]:
        before = torch.get_num_threads()
        with runtime.forwards(CPU)():
            return before, torch.get_num_threads()

    before, inside = runtime.compute(forward)
    assert before == inside


# Work in a thread of its own.


def test_work_is_done_in_another_thread_that_has_ended() -> None:
    worker = runtime.compute(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()


def test_work_has_as_many_threads_as_it_is_given() -> None:
    assert [runtime.compute(torch.get_num_threads, threads) for threads in (1, 2)] == [1, 2]


def test_what_work_raises_is_raised() -> None:
    def work() -> None:
        raise ModelError("it does not fit")

    with pytest.raises(ModelError, match="it does not fit"):
        runtime.compute(work)


def test_a_module_is_itself_on_the_cpu() -> None:
    assert runtime.recorded(torch.square, CPU) is torch.square


def lasting(*seconds: float) -> Callable[[], None]:
    """A run that takes so long the first time, so long the second, ..."""
    times = iter(seconds)
    return lambda: time.sleep(next(times))


def test_a_run_costs_what_its_quickest_repeat_takes() -> None:
    assert 0.01 <= runtime.measure(lasting(0.0, 0.06, 0.01)) < 0.06


def test_the_run_that_warms_up_is_not_counted() -> None:
    assert runtime.measure(lasting(0.0, 0.02, 0.02)) >= 0.02


def test_repeats_are_as_many_as_asked_and_one_to_warm_up() -> None:
    runs: list[None] = []
    runtime.measure(lambda: runs.append(None), repeats=5)
    assert len(runs) == 6


def test_a_long_run_is_not_repeated() -> None:
    assert runtime.measure(lasting(0.0, 0.1)) >= 0.1


@needs_gpu
def test_on_a_gpu_tensors_arrive_as_one() -> None:
    parts = [torch.randint(0, 256, (length, 3), dtype=torch.uint8) for length in (50, 1, 14)]
    there = runtime.to_device(parts, torch.device("cuda", 0))
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), torch.cat(parts))


@needs_gpu
def test_what_was_recorded_is_replayed_for_its_shape() -> None:
    gpu, calls = torch.device("cuda", 0), []

    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return x * 2

    with runtime.forwards(gpu)():
        doubled = runtime.recorded(double, gpu)
        for value, length in ((1.0, 2), (2.0, 3), (3.0, 2), (4.0, 3)):
            assert (
                doubled(torch.full((length,), value, device=gpu)).tolist() == [2 * value] * length
            )
    assert calls == [(2,), (2,), (3,), (3,)]  # once to set up, once to be recorded


@needs_gpu
def test_a_forward_on_a_gpu_has_a_stream_of_its_own() -> None:
    gpu = torch.device("cuda", 0)
    one, other = runtime.forwards(gpu), runtime.forwards(gpu)
    streams = []
    for forward in (one, one, other):
        with forward():
            assert torch.is_inference_mode_enabled()
            streams.append(torch.cuda.current_stream(gpu))
    assert streams[0] == streams[1] != streams[2]
    assert torch.cuda.current_stream(gpu) == torch.cuda.default_stream(gpu)


# Memory.


def test_a_cpu_without_memory_is_told_from_other_errors() -> None:
    with pytest.raises(OutOfMemory, match="no memory for this batch"), runtime.memory():
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="must match"), runtime.memory():
        torch.zeros(2) + torch.zeros(3)


def test_a_gpu_s_error_of_memory_is_one() -> None:
    """Its own type; that a real GPU raises it is seen where there is one."""
    with pytest.raises(OutOfMemory), runtime.memory():
        raise torch.OutOfMemoryError


@needs_gpu
def test_a_gpu_without_memory_says_so_and_goes_on() -> None:
    with pytest.raises(OutOfMemory), runtime.memory():
        torch.empty(2**50, device="cuda")
    assert float(torch.ones(3, device="cuda").sum()) == 3
