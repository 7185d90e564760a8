"""Multi-modal prompt tuning of CLIP, in notebooks: `from mudpt import *` is the user's chair"""

__version__ = "0.0.1"

_HOME = {  # module -> its names; a module is imported when one of its names is first used, so `import mudpt` is light
    "core": "MudptError BadInput BadFile NoSlots Unknown seed_all",
    "towers": "Clip load_clip trace",
    "prompts": "Prompts Out run",
    "methods": "ZeroShot CoOp CoCoOp VPT IVLP MaPLe MuDPT DCP DPT TCP ATPrompt HiCroPL MMRL LoRA "
    "LinearProbe CrossModalProbe TipAdapter TipAdapterF LPPlusPlus",
    "regularise": "Regulariser regularisers",
    "keep": "load_prompts read_card",
    "share": "from_hub push_file",
    "data": "Task folder listing open_image",
    "sources": "as_task from_hf from_torchvision from_frame from_shards",
    "catalogue": "tasks task prepare",
    "cache": "features",
    "train": "Trainer Event Bar Log",
    "judging": "judge judge_on score harmonic",
    "comparing": "compare",
    "attention": "look side_by_side",
    "alignment": "embed Track",
    "attribution": "attribute",
    "scoring": "score_maps",
    "words": "WordTrack",
    "protocols": "few_shot_curve base_to_new cross_dataset domain_shift",
    "runs": "Runs cell",
    "tabulating": "tabulate",
    "pairing": "paired",
    "published": "figures",
    "cards": "card",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = [*_WHERE, "methods", "emoji"]


def __getattr__(name):
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'mudpt' has no attribute '{name}'")
    for module in ("methods", "keep", "share", "onnx_file"):  # methods register themselves; prompts learn to be saved and sent
        import_module(f"mudpt.{module}")
    if name in ("methods", "emoji"):
        return import_module(f"mudpt.{name}")
    return getattr(import_module(f"mudpt.{_WHERE[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
