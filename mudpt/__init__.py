"""Multi-modal prompt tuning of CLIP, in notebooks: `from mudpt import *` is the user's chair"""

__version__ = "0.0.1"

_HOME = {  # name -> the module that defines it; looked up when first used, so that `import mudpt` is light
    "core": "MudptError BadInput BadFile NoSlots Unknown seed_all",
    "towers": "Clip load_clip trace",
    "prompts": "Prompts Out methods run",
    "methods": "ZeroShot CoOp CoCoOp VPT IVLP MaPLe MuDPT DCP DPT",
    "keep": "load_prompts read_card",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = [*_WHERE, "emoji"]


def __getattr__(name):
    from importlib import import_module

    if name == "emoji":
        return import_module("mudpt.emoji")
    if name not in _WHERE:
        raise AttributeError(f"module 'mudpt' has no attribute '{name}'")
    for module in ("methods", "keep"):  # methods register themselves; prompts learn to save
        import_module(f"mudpt.{module}")
    return getattr(import_module(f"mudpt.{_WHERE[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
