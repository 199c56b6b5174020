from . import interleaved as interleaved
from . import timings as timings
from .timings import BenchResult as BenchResult
from .timings import Ratio as Ratio
