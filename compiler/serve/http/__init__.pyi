from .app import application as application
from .own_work import measured as measured
from .running import new_loop as new_loop
from .running import serve as serve
