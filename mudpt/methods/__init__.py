"""Every method, a module each. Importing the package registers them; it also reads like the registry: `methods['MaPLe']`"""

import sys
from types import ModuleType

from mudpt.methods.atprompt import ATPrompt
from mudpt.methods.cocoop import CoCoOp
from mudpt.methods.coop import CoOp
from mudpt.methods.dcp import DCP
from mudpt.methods.dpt import DPT
from mudpt.methods.hicropl import HiCroPL
from mudpt.methods.ivlp import IVLP
from mudpt.methods.lora import LoRA
from mudpt.methods.lpplus import LPPlusPlus
from mudpt.methods.maple import MaPLe
from mudpt.methods.mmrl import MMRL
from mudpt.methods.mudpt import MuDPT
from mudpt.methods.probes import CrossModalProbe, LinearProbe
from mudpt.methods.tcp import TCP
from mudpt.methods.tip import TipAdapter, TipAdapterF
from mudpt.methods.vpt import VPT
from mudpt.methods.zeroshot import ZeroShot
from mudpt.prompts import methods as _registry

__all__ = [
    "ZeroShot", "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "MuDPT", "DCP", "DPT",
    "LinearProbe", "CrossModalProbe", "TipAdapter", "TipAdapterF", "LPPlusPlus", "TCP", "ATPrompt", "HiCroPL", "LoRA", "MMRL",
]


class _Methods(ModuleType):
    "This package, readable as the registry of methods by name (your own subclasses included)"

    def __getitem__(self, name):
        return _registry[name]

    def __contains__(self, name):
        return name in _registry

    def __iter__(self):
        return iter(_registry)

    def __len__(self):
        return len(_registry)

    def keys(self):
        return _registry.keys()

    def items(self):
        return _registry.items()

    def __repr__(self):
        return f"methods: {', '.join(_registry)}"


sys.modules[__name__].__class__ = _Methods
