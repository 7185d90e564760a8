"""A web server on the loopback that serves what it is told, as badly as it is told: the tests' stand-in for the internet."""

import hashlib
import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Thing:
    """Something behind an address, and how it is served"""

    body: bytes = b""
    etag: str | None = ""  # '' for one made of the body, None for none
    modified: str | None = None  # Last-Modified
    type: str = "application/octet-stream"
    cuts: list = field(default_factory=list)  # the n-th answer breaks off after so many bytes of its body; None: it does not
    codes: list = field(default_factory=list)  # statuses of the first answers, before the thing itself is given
    ranges: bool = True  # can it begin in the middle?
    heed: bool = True  # does it heed If-Range?
    length: bool = True  # does it say how long the body is?
    delay: float = 0  # seconds before each piece of 4096 bytes
    token: str | None = None  # who does not bring it gets 401
    headers: dict = field(default_factory=dict)
    location: str | None = None  # a redirect to there

    @property
    def tag(self):
        return f'"{hashlib.md5(self.body).hexdigest()}"' if self.etag == "" else self.etag


@dataclass
class Asked:
    """What was asked, and how many bytes of a body were given"""

    method: str
    path: str
    range: str | None
    if_range: str | None
    auth: str | None
    given: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def log_message(self, *args):
        pass

    def answer(self, body=True):
        h, site = self.headers, self.server.site
        path = self.path if "://" in self.path else unquote(urlsplit(self.path).path)  # whole when we are used as a proxy
        asked = Asked(self.command, path, h["Range"], h["If-Range"], h["Authorization"])
        with site.lock:
            site.log.append(asked)
            thing = site.things.get(path)
            code = thing.codes.pop(0) if thing and thing.codes else None
            cut = thing.cuts.pop(0) if thing and thing.cuts and body and not code else None
        if thing is None:
            return self.say(404, site.missing(path))
        if thing.token and h["Authorization"] != f"Bearer {thing.token}":
            return self.say(401, {})
        if code:
            return self.say(code, thing.headers)
        if thing.location:
            return self.say(302, {"Location": thing.location, "Content-Length": "0", **thing.headers})
        self.give(thing, asked, cut, body)

    def say(self, code, headers):
        self.send_response(code)
        for k, v in headers.items():
            self.send_header(k, v)
        self.end_headers()

    def give(self, thing, asked, cut, body):
        at, n = 0, len(thing.body)
        known = not thing.heed or asked.if_range in (None, thing.tag, thing.modified)
        if asked.range and thing.ranges and known:
            at = int(asked.range.removeprefix("bytes=").split("-")[0])
        if at >= n and at:
            return self.say(416, {"Content-Range": f"bytes */{n}"})
        head = {"Content-Type": thing.type, **thing.headers}
        head |= {"ETag": thing.tag} if thing.tag else {}
        head |= {"Last-Modified": thing.modified} if thing.modified else {}
        head |= {"Content-Length": str(n - at)} if thing.length else {}
        head |= {"Content-Range": f"bytes {at}-{n - 1}/{n}"} if at else {}
        self.say(206 if at else 200, head)
        if body:
            self.pour(thing, thing.body[at:] if cut is None else thing.body[at : at + cut], asked)
        if cut is not None:
            self.wfile.flush()
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def pour(self, thing, data, asked):
        step = 4096 if thing.delay else len(data) or 1
        with suppress(BrokenPipeError, ConnectionResetError):
            for i in range(0, len(data), step):
                if thing.delay:
                    time.sleep(thing.delay)
                asked.given += len(data[i : i + step])
                self.wfile.write(data[i : i + step])


class Site:
    """The server: `things` by path, a `log` of what was asked, and a little hub of repositories"""

    def __init__(self):
        self.things, self.log, self.lock, self.repos = {}, [], threading.Lock(), {}
        self.servers = []
        self.url, self.store = self.start(), self.start()  # the same on two ports, which are two hosts to whoever asks

    def start(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.site = True, self
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def put(self, path, body=b"", **how):
        """Serve a body under a path ('/a/b.zip'); gives the address"""
        self.things[path] = Thing(body, **how)
        return self.url + path

    def publish(self, url, body=b"", **how):
        """Serve a body where `MUDPT_MIRROR=site.url` looks for an address of the real internet"""
        u = urlsplit(url)
        self.put(f"/{u.netloc}{u.path}", body, **how)
        return url

    def given(self, path=None):
        """Bytes of bodies that were given"""
        return sum(a.given for a in self.log if path in (None, a.path))

    def hub(self, repo, files, repo_type="model", commit="c0ffee" * 6 + "beef", large=100, error=None, token=None, at="", **how):
        """A repository as the Hugging Face hub serves it: small files from git, files of `large` bytes or more from a store"""
        base = f"{at}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
        self.repos[base] = {"main", commit}
        for name, body in files.items():
            git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            sha, head = hashlib.sha256(body).hexdigest(), {"X-Repo-Commit": commit}
            for rev in "main", commit:
                path = f"{base}/resolve/{rev}/{name}"
                if error:
                    self.put(path, codes=[error[0]] * 99, headers={"X-Error-Code": error[1], "X-Error-Message": error[1]})
                elif len(body) < large:
                    self.put(path, body, etag=f'"{git}"', headers=head, token=token, **how)
                else:
                    head = head | {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(body))}
                    self.put(path, location=f"{self.store}/store/{sha}", headers=head, token=token)
                    self.put(f"/store/{sha}", body, etag=f'"{sha}"', **how)
        info = {"id": repo, "sha": commit, "siblings": [{"rfilename": f} for f in files], "private": False, "tags": []}
        for tail in "", "/revision/main", f"/revision/{commit}":
            self.put(f"{at}/api/{repo_type}s/{repo}{tail}", json.dumps(info).encode(), type="application/json")
        tree = [{"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for f, b in files.items()]
        for rev in "main", commit:
            self.put(f"{at}/api/{repo_type}s/{repo}/tree/{rev}", json.dumps(tree).encode(), type="application/json")

    def missing(self, path):
        """What the hub says of what it has not"""
        base, _, rest = path.partition("/resolve/")
        if not rest or path.startswith("/api"):
            return {"X-Error-Code": "RepoNotFound"} if path.startswith("/api") else {}
        if base not in self.repos:
            return {"X-Error-Code": "RepoNotFound"}
        return {"X-Error-Code": "EntryNotFound" if rest.split("/")[0] in self.repos[base] else "RevisionNotFound"}


@contextmanager
def serving():
    """A site for the length of a block, with no proxy, mirror or offline mode of the machine in between"""
    names = "MUDPT_MIRROR MUDPT_OFFLINE HF_HUB_OFFLINE MUDPT_DATA HF_ENDPOINT http_proxy HTTP_PROXY all_proxy ALL_PROXY".split()
    before = {k: os.environ.pop(k, None) for k in [*names, "no_proxy", "NO_PROXY"]}
    os.environ["no_proxy"] = "127.0.0.1"
    site = Site()
    try:
        yield site
    finally:
        site.close()
        for k, v in before.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v
