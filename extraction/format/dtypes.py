"""The dtypes that activations are stored in. No I/O.

int8 and float8_e4m3fn hold codes: a row's values are its codes times the row's scale. NumPy is imported where it is
used: the command line reads the names before it blocks signals, and NumPy's threads must start after that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

STORE_DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1, "float8_e4m3fn": 1}  # bytes of a value
LOSS_HOOK = "hook_loss"
LEAST_LOSS = 1.0  # nat: the difference of a smaller loss is measured against this, as it is one of large logits
FIXED_DTYPES = {"hook_expert_indices": "int32", LOSS_HOOK: "float32"}  # of hook points stored in no other dtype
LARGEST_CODE = {"int8": 127.0, "float8_e4m3fn": 448.0}  # of the dtypes whose rows have a scale


def dtype_named(name: str) -> "np.dtype":
    """Return the NumPy dtype of one of `STORE_DTYPES`."""
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, name, name))


def stored_dtype(hook_point: str, dtype: "np.dtype") -> "np.dtype":
    """Return the dtype of a hook point in a run that stores activations in `dtype`."""
    fixed = FIXED_DTYPES.get(hook_point.rpartition(".")[2])
    return dtype_named(fixed) if fixed else dtype


def has_scale(dtype: "np.dtype") -> bool:
    """Return whether rows of this dtype are codes with a scale."""
    return dtype.name in LARGEST_CODE
