from .app import application as application
from .app import serve as serve
