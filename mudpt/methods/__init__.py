"""Every method, a module each; importing this package registers them in `mudpt.prompts.methods`"""

from mudpt.methods.zeroshot import ZeroShot
from mudpt.methods.coop import CoOp
from mudpt.methods.cocoop import CoCoOp
from mudpt.methods.vpt import VPT
from mudpt.methods.ivlp import IVLP
from mudpt.methods.maple import MaPLe
from mudpt.methods.mudpt import MuDPT
from mudpt.methods.dcp import DCP
from mudpt.methods.dpt import DPT

__all__ = ["ZeroShot", "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "MuDPT", "DCP", "DPT"]
