from . import attention as attention
from . import disentangled_attention as disentangled_attention
from . import embeddings as embeddings
from .embeddings import looked_up as looked_up
from .rotary import rotate as rotate
