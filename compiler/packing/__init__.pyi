from .check import check_packed as check_packed
from .padding import kept_positions as kept_positions
from .padding import zero_padding as zero_padding
from .region import of_keys_alone as of_keys_alone
from .rewrite import Packing as Packing
from .rewrite import pack as pack
