"""Prompt files that travel: over a stand-in of the hub's HTTP interface, as class vectors, and as ONNX"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small import NAMES, images, shake, small

import mudpt.onnx_file  # noqa: F401  (methods learn to export)
from mudpt.core import BadFile, BadInput, Missing, seed_all
from mudpt.fetch import NotHere
from mudpt.methods import DCP, DPT, IVLP, VPT, CoCoOp, CoOp, LoRA, MaPLe, MuDPT, ZeroShot
from mudpt.share import FILE, NotSent, from_hub, push_file, readme

COMMIT = "c0ffee" * 6 + "beef"


class Hub(BaseHTTPRequestHandler):
    "Repositories as the hub takes and gives them: small files in the commit, large ones through its store"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server.hub
        repo, _, rest = self.path[1:].partition("/resolve/")
        rev, _, name = rest.partition("/")
        body = hub.files.get((repo, name)) if rev in ("main", COMMIT) else None
        if body is None:
            code = "EntryNotFound" if any(r == repo for r, _ in hub.files) else "RepoNotFound"
            return self.say(404, {"X-Error-Code": code})
        sha = hashlib.sha256(body).hexdigest()
        self.say(200, {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(body)), "ETag": f'"{sha}"'}, hub.bend(body))  # fmt: skip

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hub.store[hashlib.sha256(body).hexdigest()] = body
        self.say(200, {})

    def do_POST(self):
        hub, body = self.server.hub, self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0]
        hub.asked.append((path, self.headers["Authorization"]))
        if hub.status and not path.endswith("validate-yaml"):
            return self.say(hub.status, {"Content-Type": "application/json"}, json.dumps(dict(error=hub.says)).encode())
        for end, do in hub.posts.items():
            if path.endswith(end):
                return self.say(200, {"Content-Type": "application/json"}, json.dumps(do(path, body)).encode())
        self.say(404, {})

    def say(self, code, headers, body=b""):
        self.send_response(code)
        for k, v in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *a):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    h = server.hub = SimpleNamespace(files={}, store={}, asked=[], status=None, says="", bend=lambda b: b, url=f"http://127.0.0.1:{server.server_port}")  # fmt: skip

    def commit(path, body):
        repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
        for v in map(json.loads, body.splitlines()):
            if v["key"] == "file":
                h.files[repo, v["value"]["path"]] = base64.b64decode(v["value"]["content"])
            elif v["key"] == "lfsFile":
                h.files[repo, v["value"]["path"]] = h.store[v["value"]["oid"]]
        return dict(commitUrl=f"{h.url}/{repo}/commit/{COMMIT}", commitOid=COMMIT, success=True)

    def preupload(path, body):
        mode = lambda p: "lfs" if p.endswith(".safetensors") else "regular"
        return dict(files=[dict(path=f["path"], uploadMode=mode(f["path"]), shouldIgnore=False) for f in json.loads(body)["files"]])  # fmt: skip

    def batch(path, body):
        ask = json.loads(body)["objects"]
        return dict(transfer="basic", objects=[{**o, "actions": dict(upload=dict(href=f"{h.url}/store/{o['oid']}", header={}))} for o in ask])  # fmt: skip

    def create(path, body):
        h.created = json.loads(body)
        return dict(url=f"{h.url}/{h.created.get('organization')}/{h.created['name']}")

    h.posts = {
        "/api/repos/create": create,
        "/api/validate-yaml": lambda p, b: dict(errors=[], warnings=[]),
        "/preupload/main": preupload,
        "/info/lfs/objects/batch": batch,
        "/commit/main": commit,
    }
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for k in "MUDPT_MIRROR MUDPT_OFFLINE HF_HUB_OFFLINE HF_TOKEN http_proxy HTTP_PROXY all_proxy ALL_PROXY".split():
        monkeypatch.delenv(k, raising=False)
    for k, v in dict(no_proxy="127.0.0.1", HF_ENDPOINT=h.url, MUDPT_DATA=str(tmp_path / "data")).items():
        monkeypatch.setenv(k, v)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP, whether or not hf_xet is installed
    yield h
    server.shutdown()
    server.server_close()


def method(cls=MaPLe, **kw):
    seed_all(2)
    m = cls(small(), **kw)
    m.bind(NAMES)
    return shake(m).eval()


def test_there_and_back(hub):
    m, x = method(), images(small())
    recipe = dict(epochs=5, lr=0.0035, seed=3)
    where = m.push_to_hub("me/pets", token="hf_mine", task="four animals", recipe=recipe, metrics=dict(H=70.125), license="mit", private=True)  # fmt: skip
    assert where == f"{hub.url}/me/pets" and set(f for _, f in hub.files) == {FILE, "README.md"}
    assert hub.created["name"] == "pets" and hub.created["visibility"] == "private"
    assert {a for p, a in hub.asked if "validate" not in p} == {"Bearer hf_mine"}
    again = from_hub("me/pets", m.clip)
    assert torch.equal(again.predict(x, NAMES), m.predict(x, NAMES)) and again.trained_on == NAMES
    assert torch.equal(from_hub("me/pets", m.clip, revision=COMMIT).predict(x, NAMES), m.predict(x, NAMES))
    card = hub.files["me/pets", "README.md"].decode()
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "library_name: mudpt" in head and "license: mit" in head and "clip" in head
    for said in ("MaPLe", "arXiv 2210.03117", m.clip.digest, "four animals", "cat", "70.12", "seed 3", "spread over seeds is not known", "lr 0.0035", "from_hub('me/pets')"):  # fmt: skip
        assert said in body, said


def test_a_file_is_sent_as_it_is_and_a_second_time_over_the_first(hub, tmp_path):
    a, b = method(CoOp, n_ctx=2), method(CoOp, n_ctx=3)
    path = a.save(tmp_path / "a.safetensors")
    push_file(path, "me/two", token="t")
    assert hub.files["me/two", FILE] == path.read_bytes()
    assert from_hub("me/two", a.clip).n_ctx == 2
    b.push_to_hub("me/two", token="t", message="three words")
    assert from_hub("me/two", a.clip).n_ctx == 3


def test_card_tells_the_spread_where_there_is_one():
    rows = [dict(method="MaPLe", task="emoji/animals", protocol="base-to-new", shots=16, seed=s, base=50.0 + s, new=30.0 + s, H=37.0 + s, status="ok", args={}) for s in (1, 2, 3)]  # fmt: skip
    from mudpt.keep import card_of

    m = method()
    text = readme(card_of(m), "me/x", runs=rows)
    assert "39.6 ± 1.1" in text and "not known" not in text
    assert "No numbers were given" in readme(card_of(m), "me/x")


def test_what_can_be_known_before_sending_is_said_before(hub, monkeypatch):
    m = method()
    with pytest.raises(NotSent, match="no token.*hf auth login"):
        m.push_to_hub("me/x")
    for name in ("x", "me/x/y", "me/-x-", "me/a b"):
        with pytest.raises(BadInput, match="not the name of a repository"):
            m.push_to_hub(name, token="t")
    monkeypatch.setenv("MUDPT_OFFLINE", "1")
    with pytest.raises(NotSent, match="switched off"):
        m.push_to_hub("me/x", token="t")
    assert not hub.asked and not hub.files


def test_a_token_of_the_environment_is_used(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    method(CoOp, n_ctx=1).push_to_hub("me/x")
    assert ("/api/repos/create", "Bearer hf_env") in hub.asked


@pytest.mark.parametrize("code,says,word", [(401, "", "does not know this token"), (403, "", "may not write to"), (400, "name too rude", "name too rude"), (413, "large", "status 413")])  # fmt: skip
def test_what_the_hub_refuses(hub, code, says, word):
    hub.status, hub.says = code, says
    with pytest.raises(NotSent, match=word):
        method().push_to_hub("me/x", token="t")
    assert not hub.files


def test_no_hub_at_the_other_end(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotSent, match="127.0.0.1:9 was not reached"):
        method().push_to_hub("me/x", token="t")
    with pytest.raises(NotHere, match="was not reached"):
        from_hub("me/x", small())


def test_the_package_is_missing(monkeypatch):
    import mudpt.core

    def absent(name):
        raise ImportError(name, name=name)

    monkeypatch.setattr(mudpt.core.importlib, "import_module", absent)
    with pytest.raises(Missing, match="huggingface_hub is not installed: pip install"):
        method().push_to_hub("me/x", token="t")


def test_what_is_not_a_prompt_file(hub, tmp_path):
    clip = small()
    with pytest.raises(NotHere, match="no model repository 'me/none'"):
        from_hub("me/none", clip)
    from safetensors.torch import save

    hub.files["me/other", "README.md"] = b"hello"
    with pytest.raises(NotHere, match="'me/other' has no 'prompts.safetensors'"):
        from_hub("me/other", clip)
    for name, body, word in (("a", save({"x": torch.ones(2)}), "not written by mudpt"), ("b", b"\x80\x04K\x01.", "pickle"), ("c", b"x" * 50, "damaged")):  # fmt: skip
        hub.files[f"me/{name}", FILE] = body
        with pytest.raises(BadFile, match=f"'me/{name}' on the hub.*{word}"):
            from_hub(f"me/{name}", clip)
    with pytest.raises(BadFile):
        push_file(tmp_path / "none.safetensors", "me/x", token="t")


def test_a_file_that_was_changed_is_refused(hub):
    m = method(CoOp, n_ctx=2)
    m.push_to_hub("me/x", token="t")
    whole = hub.files["me/x", FILE]
    hub.files["me/x", FILE] = whole[:-1] + bytes([whole[-1] ^ 1])  # another file, honestly announced
    with pytest.raises(BadFile, match="seal does not match"):
        from_hub("me/x", m.clip)
    hub.files["me/x", FILE], hub.bend = whole, lambda b: b[:-1] + bytes([b[-1] ^ 1])  # bent on the way
    with pytest.raises(NotHere):
        from_hub("me/x", m.clip, retries=0, pause=0.001)


def test_another_backbone_is_refused(hub):
    m = method(CoOp, n_ctx=2)
    m.push_to_hub("me/x", token="t")
    with pytest.raises(BadFile, match="'me/x' on the hub.*these prompts were learned with"):
        from_hub("me/x", small("custom blocks"))


# Class vectors


def plainly(clip, x, w):
    "What somebody does who has open_clip and a matrix"
    with torch.no_grad():
        return clip.model.logit_scale.exp() * F.normalize(clip.model.encode_image(x), dim=-1) @ w.T


@pytest.mark.parametrize("cls,kw", [(ZeroShot, {}), (ZeroShot, dict(ensemble=True)), (CoOp, dict(n_ctx=3)), (CoOp, dict(n_ctx=2, csc=True)), (IVLP, dict(n_ctx_image=0)), (LoRA, dict(towers="text"))])  # fmt: skip
def test_class_vectors_are_all_that_open_clip_needs(cls, kw):
    m, x = method(cls, **kw), images(small())
    w = m.to_openclip(NAMES)
    assert w.shape == (4, 96) and not w.requires_grad and torch.allclose(w.norm(dim=1), torch.ones(4), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(plainly(m.clip, x, w), m(x, NAMES).logits, atol=1e-4)


def test_merged_low_rank_is_plain_open_clip():
    m, x = method(LoRA), images(small())
    merged = m.merge()
    w = ZeroShot(merged).to_openclip(NAMES)
    with torch.no_grad():
        assert torch.allclose(plainly(merged, x, w), m(x, NAMES).logits, atol=1e-4)


@pytest.mark.parametrize("cls,kw,word", [(CoCoOp, {}, "text reads the image"), (DCP, dict(n_ctx=2), "text reads the image"), (MaPLe, {}, "works in the image tower, too.*to_onnx"), (MuDPT, {}, "image tower"), (VPT, dict(n_ctx=2), "image tower"), (DPT, dict(n_ctx=2, n_image=2, top_k=2), "image tower"), (LoRA, {}, "merge\\(\\) gives")])  # fmt: skip
def test_methods_without_class_vectors_say_why(cls, kw, word):
    with pytest.raises(BadInput, match=word):
        method(cls, **kw).to_openclip(NAMES)


def test_vectors_that_would_not_say_the_same_are_not_handed_out(monkeypatch):
    m = method(CoOp, n_ctx=2)
    monkeypatch.setattr(type(m), "forward", lambda self, *a, **k: SimpleNamespace(logits=torch.zeros(2, 4)))
    with pytest.raises(BadInput, match="does not answer with cosines"):
        m.to_openclip(NAMES)


# ONNX


@pytest.mark.parametrize("cls,kw", [(MaPLe, {}), (LoRA, {})])
def test_onnx_says_what_the_method_says(cls, kw, tmp_path):
    import onnxruntime

    m, x = method(cls, **kw), images(small(), 5)
    file = m.train().to_onnx(NAMES, tmp_path / "m.onnx")
    assert m.training
    m.eval()
    run = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = m(x, NAMES)
    for n in (1, 2, 5):  # any size of batch
        logits, features = map(torch.tensor, run.run(None, {"image": x[:n].numpy()}))
        assert torch.allclose(logits, want.logits[:n], atol=1e-4)
        assert torch.allclose(features, want.image[:n], atol=1e-5)
    told = run.get_modelmeta().custom_metadata_map
    assert json.loads(told["mudpt_names"]) == NAMES and json.loads(told["mudpt_image_size"]) == 32


@pytest.mark.parametrize("cls,kw,word", [(CoCoOp, {}, "text reads the image"), (DCP, dict(n_ctx=2, per="image"), "text reads the image"), (DCP, dict(n_ctx=2), "batch-mates")])  # fmt: skip
def test_methods_that_are_no_fixed_network_say_why(cls, kw, word, tmp_path):
    with pytest.raises(BadInput, match=word):
        method(cls, **kw).to_onnx(NAMES, tmp_path / "m.onnx")


def test_onnx_is_not_installed(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Missing, match=r"onnx is not installed: pip install 'mudpt\[export\]'"):
        method(CoOp, n_ctx=1).to_onnx(NAMES, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
