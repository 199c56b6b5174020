from . import attention as attention
from . import disentangled_attention as disentangled_attention
from . import embeddings as embeddings
from .disentangled_attention import looked_up_positions as looked_up_positions
from .embeddings import looked_up as looked_up
from .packed_layout import kept_positions as kept_positions
from .rotary import rotate as rotate
