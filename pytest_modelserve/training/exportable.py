"""Whether a module is in a state to be exported, told before the exporter runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_modelserve.errors import ExportError

if TYPE_CHECKING:
    from torch import nn


def check_exportable(module: nn.Module) -> None:
    """ExportError for a module that is scripted, in training mode, pruned with its masks still on, or not on the CPU;
    it names the part, and the call that puts it right."""
    from torch import jit

    for path, each in module.named_modules():
        part = f"its part {path!r}" if path else "the module"
        if isinstance(each, jit.ScriptModule):
            raise ExportError(f"{part} is scripted already: export the nn.Module that it was made from")
        if each.training:
            raise ExportError(f"{part} is in training mode, where dropout draws and norms learn: call .eval() first")
        _refuse_masks(part, path, each)
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(f"{path!r} is on {tensor.device}, where the export cannot be checked: call .cpu() first")


def _refuse_masks(part: str, path: str, module: nn.Module) -> None:
    """The exporter folds small masks into the weights; large ones stay, and make the file nearly twice as large."""
    from torch.nn.utils import prune

    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            name = getattr(hook, "_tensor_name", "weight")
            holder = f"module.get_submodule({path!r})" if path else "module"
            raise ExportError(
                f"{part} keeps its pruned {name!r} as a mask beside all the values, zeros included, and both would be "
                f"exported: call torch.nn.utils.prune.remove({holder}, {name!r}) first"
            )
