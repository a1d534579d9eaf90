"""Both sides: a Tune by the name of a packaged one, or from a user's file."""

import os
import runpy
from pathlib import Path

from hypertrack_jax.errors import UserError
from hypertrack_jax.tunes import dense, dense_cells, helix, local, tune_5
from hypertrack_jax.tunes.tune import Tune

_MODULES = tune_5, helix, local, dense, dense_cells
PACKAGED = {module.TUNE.name: module.TUNE for module in _MODULES}


def load_tune(param: str) -> Tune:
    """The Tune of that name, or of a user's file.

    Args:
      param: the name of a packaged tune, or the path of a Python file that defines `TUNE`. The file
        is run, so it must come from someone you trust.

    Raises:
      UserError: neither; or the file defines no Tune.
    """
    if param in PACKAGED:
        return PACKAGED[param]
    path = Path(os.path.expanduser(param))
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"param={param} is neither a packaged tune ({', '.join(PACKAGED)}) nor a Python file."
        )
    tune = runpy.run_path(str(path)).get("TUNE")
    if not isinstance(tune, Tune):
        raise UserError(f"param={param}: the file defines no TUNE of type Tune.")
    return tune
