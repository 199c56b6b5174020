from . import diff as diff
from . import doctor as doctor
from . import document as document
from . import figures as figures
from . import inspect as inspect
from . import page as page
from . import plots as plots
from . import tables as tables
