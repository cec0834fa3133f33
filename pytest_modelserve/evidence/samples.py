"""Raw samples beside the report: too long to travel in evidence, and needed by whoever wants to draw or judge again."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from typing import TYPE_CHECKING, Any

from pytest_modelserve.evidence.recorder import current_recorder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def keep_samples(**arrays: NDArray[np.float64]) -> dict[str, Any]:
    """Where the arrays were written, as an entry for `details`; {} where nobody keeps samples.

    One compressed .npz, named by its sha256, in the folder that the current recorder has for them: that of the run's
    JSON document. Written in one step, so that no reader sees half of it. A folder that cannot be written leaves
    the reason in the entry: the document itself, which goes there too, is refused with an error.
    """
    recorder = current_recorder()
    folder = None if recorder is None else recorder.samples
    if folder is None:
        return {}
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    name = f"{hashlib.sha256(content).hexdigest()}.npz"
    temporary = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)
    except OSError as error:
        return {"samples": {"not_written": error.strerror or str(error)}}
    return {"samples": {"file": f"{folder.name}/{name}", "arrays": sorted(arrays)}}
