from .app import application as application
from .app import new_loop as new_loop
from .app import serve as serve
