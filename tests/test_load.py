"""Weights come in several formats and must come out as the model they were trained as"""

import copy
import json
import pickle

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from small import CONFIGS, images

from mudpt.core import BadFile, BadInput, Unknown, seed_all
from mudpt.towers import build, infer_config, load_clip

CFG = CONFIGS["vit"]
SCALARS = dict(input_resolution=32, context_length=77, vocab_size=49408)


@pytest.fixture(scope="module")
def reference():
    "A model with QuickGELU, as OpenAI trained theirs"
    seed_all(3)
    return build(CFG, quickgelu=True).eval()


def exact(clip, reference):
    x, t = images(clip), clip.tokenizer(["a cat", "a golden retriever"])
    with torch.no_grad():
        assert torch.allclose(clip.encode_image(x), reference.encode_image(x), atol=1e-4)
        assert torch.allclose(clip.encode_text(["a cat", "a golden retriever"]), reference.encode_text(t), atol=1e-4)
    return True


def activation(clip):
    return type(clip.model.visual.transformer.resblocks[0].mlp.gelu), type(clip.model.transformer.resblocks[0].mlp.gelu)


def openai_state(model):
    return {**model.state_dict(), **{k: torch.tensor(v) for k, v in SCALARS.items()}}


def test_openai_state_dict(reference, tmp_path):
    "A state dict in OpenAI's format needs no name; its shapes and its activation are found"
    torch.save(openai_state(reference), tmp_path / "m.pt")
    clip = load_clip(file=tmp_path / "m.pt", device="cpu")
    assert activation(clip) == (QuickGELU, QuickGELU) and exact(clip, reference)


def test_openai_state_dict_under_a_name_that_computes_gelu(reference, tmp_path):
    "Named after a configuration with exact GELU, OpenAI's weights still get QuickGELU; unless one insists"
    torch.save(openai_state(reference), tmp_path / "m.pt")
    plain = {**CFG, "quick_gelu": False}
    assert exact(load_clip(plain, file=tmp_path / "m.pt", device="cpu"), reference)
    assert activation(load_clip(plain, file=tmp_path / "m.pt", quickgelu=False, device="cpu")) == (torch.nn.GELU,) * 2


def test_openai_half_precision(reference, tmp_path):
    half = copy.deepcopy(reference)
    open_clip.model.convert_weights_to_fp16(half)
    torch.save(openai_state(half), tmp_path / "m.pt")
    clip = load_clip(file=tmp_path / "m.pt", device="cpu")
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    assert exact(clip, copy.deepcopy(half).float())


def test_openai_jit_archive(reference, tmp_path):
    "OpenAI publishes TorchScript archives"

    class Archive(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            for k, v in model.named_children():
                setattr(self, k, v)
            for k in "positional_embedding", "text_projection", "logit_scale":
                setattr(self, k, getattr(model, k))
            for k, v in SCALARS.items():
                self.register_buffer(k, torch.tensor(v))

        def forward(self, x):
            return self.visual(x)

    torch.jit.trace(Archive(copy.deepcopy(reference)).eval(), torch.randn(1, 3, 32, 32), check_trace=False).save(
        str(tmp_path / "m.pt")
    )
    clip = load_clip(file=tmp_path / "m.pt", device="cpu")
    assert activation(clip)[0] is QuickGELU and exact(clip, reference)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_open_clip_format(suffix, tmp_path):
    "open_clip's own files keep the activation of their configuration"
    seed_all(1)
    model = build({**CFG, "quick_gelu": False}).eval()
    state = {k: v for k, v in model.state_dict().items() if k != "attn_mask"}
    if suffix == "pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "m.pt")
    else:
        save_file(state, tmp_path / "m.safetensors")
    clip = load_clip({**CFG, "quick_gelu": False}, file=tmp_path / f"m.{suffix}", device="cpu")
    assert activation(clip)[0] is torch.nn.GELU and exact(clip, model)


@pytest.mark.parametrize("kind", ["vit", "wide text, unequal depth", "resnet"])
def test_shapes_tell_the_configuration(kind):
    want, cfg = CONFIGS[kind], infer_config(build(CONFIGS[kind]).state_dict())
    for tower in "vision_cfg", "text_cfg":
        assert {k: cfg[tower][k] for k in want[tower]} == want[tower]
    assert cfg["embed_dim"] == want["embed_dim"] and cfg["quick_gelu"]


def test_refusals(reference, tmp_path):
    def refused(error, word, *a, **kw):
        with pytest.raises(error) as e:
            load_clip(*a, **kw, device="cpu")
        assert word in str(e.value), str(e.value)

    torch.save(openai_state(reference), tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    refused(BadFile, "no weights at", "ViT-B-32", file=tmp_path / "none.pt")
    refused(BadFile, "cannot be read", file=tmp_path / "cut.pt")
    refused(BadFile, "cannot be read", file=tmp_path / "evil.pt")
    refused(BadInput, "not in OpenAI's layout", file=tmp_path / "other.pt")
    refused(BadFile, "does not fit", CONFIGS["resnet"], file=tmp_path / "m.pt")
    refused(Unknown, "did you mean 'ViT-B-16'", "ViT-B16", "openai")
    refused(Unknown, "did you mean 'openai'", "ViT-B-16", "openia")
    refused(BadInput, "needs a model name")


def test_a_folder_as_open_clip_saves_it(tmp_path):
    seed_all(1)
    model = build(CFG).eval()
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps(dict(model_cfg=CFG, preprocess_cfg=dict(mean=[0.5] * 3)))
    )
    save_file(
        {k: v for k, v in model.state_dict().items() if k != "attn_mask"}, tmp_path / "open_clip_model.safetensors"
    )
    clip = load_clip(f"local-dir:{tmp_path}", device="cpu")
    assert clip.mean == (0.5, 0.5, 0.5) and activation(clip)[0] is QuickGELU and exact(clip, model)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(BadFile, match="could not be fetched or read"):
        load_clip(f"local-dir:{tmp_path}", device="cpu")
    with pytest.raises(BadFile, match="could not be fetched or read"):
        load_clip("local-dir:nowhere", device="cpu")


def test_no_network_is_a_sentence(monkeypatch, tmp_path):
    "Weights that are not cached and cannot be fetched: what happened, and what to do instead"

    def closed(*a, **kw):
        raise OSError("network is unreachable")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", closed)
    with pytest.raises(BadFile, match="connect once so that they are cached, or pass file="):
        load_clip("ViT-B-32", "openai", cache_dir=tmp_path, device="cpu")


def test_a_code_carrying_checkpoint_runs_nothing(tmp_path):
    "A pickle that would create a file when it is unpickled does not get to"

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BadFile):
        load_clip(file=tmp_path / "evil.pt", device="cpu")
    assert not (tmp_path / "ran").exists()
