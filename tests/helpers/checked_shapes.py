"""The shapes, dtypes and axis names of annotations, checked at every call.

In: files of `tests/model_configs`. Out: a line for each: its step was traced at its real sizes, and every annotated
function held. An error says which argument, result or field is of another shape. Cost: a second or two for each model;
no weights are made and nothing is compiled.

The library imports jaxtyping for type checkers only, so that neither readers nor workers need it. Here the names of
its annotations become builtins, where every module finds them.
"""

import builtins
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("batching", "format", "models")
KINDS = ("Bool", "Float", "Int", "Num", "UInt8")


def check_shapes() -> None:
    """Check the modules of these folders that annotate arrays, if they are imported from now on."""
    import jaxtyping

    vars(builtins).update({kind: getattr(jaxtyping, kind) for kind in KINDS})
    files = [path for folder in FOLDERS for path in (ROOT / "extraction" / folder).rglob("*.py")]
    names = [path.relative_to(ROOT) for path in files if "from jaxtyping import" in path.read_text()]
    jaxtyping.install_import_hook([".".join(name.with_suffix("").parts) for name in names], "beartype.beartype")


def trace(name: str) -> None:
    """Trace the step of a model with all hook points of two layers."""
    import jax

    from extraction.models.config_file import read_model_config
    from extraction.models.step import lower_step
    from extraction.models.step_options import StepOptions

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "tests/model_configs" / f"{name}.json", Path(folder) / "config.json")
        config = read_model_config(Path(folder))
    layer = {hook: int(hook.split(".")[1]) for hook in config.hook_points if hook.startswith("blocks.")}
    hooks = tuple(hook for hook in config.hook_points if layer.get(hook, 0) in (0, 3))
    lower_step(config, StepOptions(hooks, 2, 64, "bfloat16", "int8"), jax.devices())


if __name__ == "__main__":
    check_shapes()
    for model in sys.argv[1:]:
        trace(model)
        print(model)
