"""Libraries that the project imports, for `kept_bytes.py` to have before it forks; without torch, as a worker.

In: nothing. Out: imported modules. Guarantee: no thread and no jax backend is started. Cost: three seconds, once.
"""

import sys

sys.modules["torch"] = None  # transformers would import it

import flax.linen  # noqa: E402, F401
import google.cloud.storage  # noqa: E402, F401
import jax  # noqa: E402, F401
import transformers.models.auto.tokenization_auto  # noqa: E402, F401

del sys.modules["torch"]  # not every command does without it
