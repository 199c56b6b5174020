from ._kernels import Kernels as Kernels
from ._modes import CALIBRATED as CALIBRATED
from ._modes import QUANTISED as QUANTISED
from ._modes import get as get
from ._modes import names as names
from ._plan import Typed as Typed
from ._value_ranges import Evidence as Evidence
