"""Whether a run on two machines works, on one: two network namespaces of Linux that only a virtual cable joins.

    python benchmarks/two_nodes.py --config experiments/unet_seg.yaml --trainer.max_epochs 1

Arguments are those of `fit`. torchrun runs in each namespace, with one process; what they print comes line by line,
with the name of the node in front. It needs root, and `ip` of iproute2.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

NODES = {"one": "10.77.0.1", "two": "10.77.0.2"}
NAME = "framework-node-"


def join_nodes() -> None:
    """Make the namespaces, and the cable between them."""
    one, two = (NAME + node for node in NODES)
    for command in (
        f"ip netns add {one}",
        f"ip netns add {two}",
        f"ip link add cable netns {one} type veth peer name cable netns {two}",
        *(f"ip -n {NAME}{node} address add {address}/24 dev cable" for node, address in NODES.items()),
        *(f"ip -n {NAME}{node} link set {device} up" for node in NODES for device in ("cable", "lo")),
    ):
        subprocess.run(command.split(), check=True)


def part_nodes() -> None:
    """Take both away, if they are there."""
    for node in NODES:
        subprocess.run(["ip", "netns", "delete", NAME + node], check=False, stderr=subprocess.DEVNULL)


def start(node: str, options: list[str]) -> subprocess.Popen[str]:
    """Start torchrun on one node."""
    torchrun, fit = (str(Path(sys.executable).with_name(command)) for command in ("torchrun", "fit"))
    join = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={NODES['one']}:29500"]
    join += [f"--rdzv-id=two-nodes-{os.getpid()}", f"--local-addr={NODES[node]}"]
    join += [f"--rdzv-conf=is_host={str(node == 'one').lower()}"]  # nodes of one machine have one host name
    command = ["ip", "netns", "exec", NAME + node, torchrun, *join, "--no-python", fit, *options]
    command += ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "cable", "NCCL_SOCKET_IFNAME": "cable"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def show(node: str, process: subprocess.Popen[str]) -> None:
    """Print what a node prints."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"node {node}: {line}", end="", flush=True)


def main() -> int:
    """Run `fit` on both nodes; returns 0 if both ended well."""
    part_nodes()
    try:
        join_nodes()
        processes = {node: start(node, sys.argv[1:]) for node in NODES}
        threads = [threading.Thread(target=show, args=each) for each in processes.items()]
        for thread in threads:
            thread.start()
        codes = {node: process.wait() for node, process in processes.items()}
        for thread in threads:
            thread.join()
    finally:
        part_nodes()
    print(", ".join(f"node {node} ended with {code}" for node, code in codes.items()))
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
