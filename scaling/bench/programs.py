"""Programs that the TPU's compiler has made, kept in the cache, because each takes minutes.

What is kept is the program's text and not what a prediction said of it, so a change of the prediction needs no
compilation.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scaling import cache, durable


class Kept(NamedTuple):
    """A compiled program.

    Attributes:
        text: optimized; "" = it does not fit into the memory.
        bytes: a device.
        seconds: that compiling took.
    """

    text: str
    bytes: int
    seconds: float


def kept(key: Sequence[str], make: Callable[[], Kept]) -> Kept:
    """The program from the cache, else made and put there; a damaged file is made again.

    Args:
        key: everything that the program depends on.
        make: compiles it.
    """
    digest = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:32]
    path = cache.root() / "programs" / f"{digest}.json.gz"
    try:
        return Kept(*json.loads(gzip.decompress(path.read_bytes())))
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        print(f"the kept program {path} is damaged and is made again ({error!r})", flush=True)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.replaced(path) as part:
        part.write_bytes(gzip.compress(json.dumps(made).encode(), 6))
    return made
