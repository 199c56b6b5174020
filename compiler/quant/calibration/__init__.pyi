from . import command as command
from . import observe as observe
from .clipping import METHODS as METHODS
from .observe import Observed as Observed
from .ranges_file import Ranges as Ranges
