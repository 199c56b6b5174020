"""Every Triton kernel on a GPU: torch's numbers on the same inputs, and the compiled PTX started as TensorRT starts it.

A second or so a kernel. Times against torch and shares of a copy: `python -m benchmarks gpu`, which begins nothing after 330 s.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from benchmarks import bench_gpu

pytestmark = pytest.mark.skipif(bool(bench_gpu.lacking()), reason=bench_gpu.lacking() or "a GPU is there")


def examples() -> list[tuple[str, str]]:
    if find_spec("triton") is None:
        return []
    from bertc.plugins.kernels import launches

    return [(launch.name, name) for launch in launches().values() for name in launch.examples]


@pytest.mark.parametrize(("kernel", "example"), examples())
def test_a_kernel_gives_the_numbers_of_torch(kernel: str, example: str) -> None:
    from bertc.plugins.kernels import _ptx, launches

    launch = launches()[kernel]
    chosen = launch.examples[example]
    shapes = _ptx.example_shapes(launch, chosen)
    inputs, outputs = bench_gpu.made(launch, chosen, shapes)
    wanted = bench_gpu.BASELINES[kernel](inputs, chosen.attributes)
    for variant in launch.fitting(launch.dims(shapes, chosen.attributes)):
        launch.run(inputs, outputs, chosen.attributes, variant)
        assert bench_gpu.difference(outputs, wanted) <= bench_gpu.LIMIT, f"variant {variant}"


@pytest.mark.parametrize(("kernel", "example"), examples())
def test_compiled_ahead_of_time_it_gives_the_same(kernel: str, example: str) -> None:
    import torch

    from bertc.plugins.kernels import _launch, _ptx, launches

    launch = launches()[kernel]
    chosen = launch.examples[example]
    shapes = _ptx.example_shapes(launch, chosen)
    variant = launch.fitting(launch.dims(shapes, chosen.attributes))[0]
    major, minor = torch.cuda.get_device_capability()
    try:
        compiled = _ptx.compile_example(launch, example, 10 * major + minor, variant=variant)
    except _launch.Unsupported as refused:
        pytest.skip(str(refused))
    inputs, outputs = bench_gpu.made(launch, chosen, shapes)
    launch.run(inputs, outputs, chosen.attributes, variant)
    again = {name: torch.full_like(each, 77) for name, each in outputs.items()}
    bench_gpu.start(launch, compiled, inputs, again, chosen, variant)
    assert bench_gpu.difference(again, {name: each.double() for name, each in outputs.items()}) <= bench_gpu.LIMIT
