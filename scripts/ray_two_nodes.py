"""A sweep on a Ray cluster of two nodes, one of which is killed in the middle: python scripts/ray_two_nodes.py

Two raylets on this machine, each with one core and one GPU (in name only), share a folder of runs. When the second
node is at work and one of its cells has an epoch behind it, the node is killed with everything that runs on it. The
sweep goes on with the first one. At the end every cell is done, exactly once; the cell that was under way on the dead
node went on from its last complete epoch, in another process.

Everything stays on the loopback address. Takes about a minute.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from mudpt import emoji
from mudpt.core import MudptError
from mudpt.on_ray import quick
from mudpt.runfolder import read_record
from mudpt.sweep import Sweep, grid


def nodes(tries=3):
    "A head and a second node; (cluster, the second node)"
    from ray.cluster_utils import Cluster

    small = dict(num_cpus=1, num_gpus=1, include_log_monitor=False, object_store_memory=80 * 2**20)
    for left in reversed(range(tries)):  # a busy machine may be too slow for a first attempt
        cluster = None
        try:
            cluster = Cluster(
                initialize_head=True, head_node_args=dict(small, include_dashboard=False, no_monitor=True)
            )
            return cluster, cluster.add_node(**small)
        except Exception as e:
            if cluster:
                cluster.shutdown()
            if not left:
                raise MudptError(f"Ray did not start: {e}") from e


def say(*a):
    print(f"{time.monotonic() - T0:5.1f} s ", *a, flush=True)


def workers_of(raylet):
    "Processes that a raylet started, down to the last"
    children, found, todo = {}, [], [raylet]
    for d in Path("/proc").glob("[0-9]*"):
        try:
            children.setdefault(int((d / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(int(d.name))
        except OSError:
            pass
    while todo:
        new = children.get(todo.pop(), [])
        found, todo = found + new, todo + new
    return found


def killer(sweep, cluster, node, killed):
    "Wait until the node's process has an epoch of a cell behind it and more to do; then kill the node, all of it"
    raylet = node.all_processes["raylet"][0].process.pid
    while not killed:
        mine = workers_of(raylet)
        for i, run in sweep.find().items():
            r = run.record
            at = r.get("progress") or {}
            started = r["status"] == "running" and r["where"].get("pid") in mine
            if started and 1 <= (at.get("epoch") or 0) < (at.get("epochs") or 0):
                os.kill(raylet, signal.SIGKILL)
                for pid in mine:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                killed.append(dict(cell=i, pid=r["where"]["pid"], epoch=at["epoch"], folder=run.folder.name))
                say(f"killed the second node (raylet {raylet} and {len(mine)} processes), at work on {run.folder.name}")
                say(f"it had {at['epoch']} of {at['epochs']} epochs behind it")
                cluster.remove_node(node, allow_graceful=False)
                return
        time.sleep(0.05)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, help="folder of runs; a temporary one if omitted")
    p.add_argument("--epochs", type=int, default=8)
    a = p.parse_args()
    out = a.out or Path(tempfile.mkdtemp(prefix="mudpt-ray-")) / "runs"
    task = emoji.task("animals", n_train=4, n_val=1, n_test=3, classes=12)
    cells = grid(["CoOp", "VPT"], task, shots=4, seeds=[1, 2], epochs=a.epochs, bs=4)
    with quick():
        import ray

        cluster, second = nodes()
        ray.init(address=cluster.address, log_to_driver=False, include_dashboard=False, logging_level="error")
        say(f"a cluster of {len(ray.nodes())} nodes at {cluster.address}")
    killed: list = []
    s = Sweep(cells, out, engine="ray", tasks=[task], gpus=0.5, cpus=1, retries=3)
    threading.Thread(target=killer, args=[s, cluster, second, killed], daemon=True).start()
    try:
        s.run(bar=False, tell=lambda i, o: say(f"cell {i}: {o['status']} {o.get('error') or ''}"[:150]))
        alive = sum(n["Alive"] for n in ray.nodes())
    finally:
        ray.shutdown()
        cluster.shutdown()
    say(f"{alive} node left of 2")
    for k in killed:
        now = read_record(out / k["folder"])
        k |= dict(finished_by=now["where"]["pid"], status=now["status"])
    print(s)
    print(s.frame[["method", "task", "seed", "status", "H", "epoch"]].to_string())
    print(json.dumps(dict(counts=s.counts, killed=killed, alive=alive, losses=dict(s.todo.losses))))
    if s.counts != {"done": len(cells)} or not killed:
        sys.exit("the sweep did not come out whole" if killed else "the sweep was over before the node could be killed")


T0 = time.monotonic()
if __name__ == "__main__":
    main()
