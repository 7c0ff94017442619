"""Machines that are not this one: GPUs by name, SageMaker's types, and `8xH100-80` as a machine. Rates are per GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from velocity.errors import UserError
from velocity.planner.hardware import GIB, Hardware


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory and rates, in bytes and FLOP a second: dense 16-bit products, memory, link to its peers, to host.

    From the vendor's data sheets. A link counts one direction.
    """

    memory_gib: float
    flops: float
    memory_rate: float
    link: float
    host_link: float
    capability: float


PCIE4, PCIE5 = 32e9, 64e9  # 16 lanes, one direction
GPUS = {
    "B300": Gpu(269, 2.25e15, 8e12, 900e9, PCIE5, 10.3),
    "B200": Gpu(179, 2.25e15, 8e12, 900e9, PCIE5, 10.0),
    "H200": Gpu(141, 989e12, 4.8e12, 450e9, PCIE5, 9.0),
    "H100": Gpu(80, 989e12, 3.35e12, 450e9, PCIE5, 9.0),
    "A100": Gpu(80, 312e12, 2.04e12, 300e9, PCIE4, 8.0),
    "L40S": Gpu(45, 362e12, 864e9, PCIE4, PCIE4, 8.9),
    "L40": Gpu(45, 181e12, 864e9, PCIE4, PCIE4, 8.9),
    "A10G": Gpu(22, 70e12, 600e9, PCIE4, PCIE4, 8.6),
    "A10": Gpu(22, 125e12, 600e9, PCIE4, PCIE4, 8.6),
    "L4": Gpu(22, 121e12, 300e9, PCIE4, PCIE4, 8.9),
    "T4": Gpu(15, 65e12, 320e9, 16e9, 16e9, 7.5),
}
UNKNOWN = Gpu(16, 100e12, 1e12, 16e9, 16e9, 8.0)  # a guess, and said to be one
# Of a processor: measured on SmolLM2-135M, 135 tokens a second x 6 x 135e6 FLOP on two cores; and a guess for memory
CORE_FLOPS, HOST_RATE = 55e9, 100e9
DISK_RATE = 6e9  # a guess: bytes a second of a node's NVMe, both ways
NETWORK = 12.5e9  # a guess where nothing says it: 100 Gbit/s a node
NETWORK_A_GPU = 50e9  # and where GPUs have NVLink: 400 Gbit/s a GPU, as ml.p5.48xlarge
RAM_PER_GPU_MEMORY = 3  # a guess for `--gpus`: SageMaker's machines have 2 to 3.6 times their GPUs' memory


@dataclass(frozen=True)
class Cluster:
    """Machines of one kind. `network` is what a node sends, in bytes a second; `guesses` are what nothing said."""

    hardware: Hardware
    nodes: int = 1
    network: float = NETWORK
    nvme_gib: float = 0.0
    name: str = "this machine"
    guesses: tuple[str, ...] = ()

    @property
    def gpu(self) -> Gpu:
        """What is known of its GPUs."""
        return gpu_named(self.hardware.gpus[0][0]) if self.hardware.gpus else UNKNOWN

    @property
    def all_gpus(self) -> Hardware:
        """One machine with the GPUs of all nodes, to count processes by."""
        return replace(self.hardware, gpus=self.hardware.gpus * self.nodes)

    @property
    def kind(self) -> str:
        """What calibration tells apart."""
        if self.hardware.gpus:
            return f"gpu {self.hardware.gpus[0][0]}"
        return f"cpu {self.hardware.cores} cores{' bf16' if self.hardware.cpu_bf16 else ''}"


def gpu_named(name: str) -> Gpu:
    """The rates of a GPU by a word of its name; of one that the table has not, a guess."""
    return next((GPUS[word] for word in re.split(r"\W|_", name) if word in GPUS), UNKNOWN)


# Type: GPUs, their name, GiB each where it is not the table's, RAM GiB, NVMe TB, network Gbit/s (AWS's instance pages)
INSTANCES: dict[str, tuple[int, str, float | None, int, float, int]] = {
    "ml.p4d.24xlarge": (8, "A100", 40, 1152, 8, 400),
    "ml.p4de.24xlarge": (8, "A100", 80, 1152, 8, 400),
    "ml.p5.4xlarge": (1, "H100", None, 256, 3.8, 100),
    "ml.p5.48xlarge": (8, "H100", None, 2048, 30.4, 3200),
    "ml.p5e.48xlarge": (8, "H200", None, 2048, 30.4, 3200),
    "ml.p5en.48xlarge": (8, "H200", None, 2048, 30.4, 3200),
    "ml.p6-b200.48xlarge": (8, "B200", None, 2048, 30.4, 3200),
    "ml.p6-b300.48xlarge": (8, "B300", None, 4096, 30.4, 6400),
    "ml.g5.12xlarge": (4, "A10G", None, 192, 3.8, 40),
    "ml.g5.48xlarge": (8, "A10G", None, 768, 7.6, 100),
    "ml.g6.12xlarge": (4, "L4", None, 192, 3.8, 40),
    "ml.g6.48xlarge": (8, "L4", None, 768, 7.5, 100),
    "ml.g6e.12xlarge": (4, "L40S", None, 384, 3.8, 100),
    "ml.g6e.48xlarge": (8, "L40S", None, 1536, 7.6, 400),
}
ASKED = re.compile(r"(?:(\d+)x)?(\d+)x([A-Za-z]\w*?)(?:-(\d+(?:\.\d+)?))?")


def parse_gpus(text: str, nodes: int = 1) -> Cluster:
    """The machines of `8xH100-80` or `2x8xH200-141`; UserError for what is neither, or a GPU that is not known."""
    found = ASKED.fullmatch(text.strip())
    if not found or not int(found[2]):
        raise UserError(f"{text} names no GPUs", "--gpus", "e.g. 8xH100-80, or 2x8xH200-141 for two nodes")
    name, count = found[3].upper(), int(found[2])
    if name not in GPUS and not found[4]:
        raise UserError(f"the GPU {found[3]} is not known", "--gpus", f"one of {', '.join(GPUS)}, or say its GiB: -80")
    gpu = GPUS.get(name, UNKNOWN)
    memory = float(found[4] or gpu.memory_gib)
    host = RAM_PER_GPU_MEMORY * memory * count
    network = NETWORK_A_GPU * count if gpu.link > PCIE5 else NETWORK
    guesses = [f"host memory {host:,.0f} GiB a node", f"network {network * 8 / 1e9:,.0f} Gbit/s a node"]
    if name not in GPUS:
        guesses.append(f"the rates of {found[3]}")
    hardware = Hardware(12 * count, host, cpu_bf16=True, gpus=((found[3], memory, gpu.capability),) * count)
    return Cluster(hardware, int(found[1] or 1) * nodes, network, 0.0, text, tuple(guesses))


def parse_instance(name: str, nodes: int = 1) -> Cluster:
    """The machines of a SageMaker type; UserError for one that is not in the table."""
    if name not in INSTANCES:
        raise UserError(f"the instance type {name} is not known", "--instance", f"one of {', '.join(INSTANCES)}")
    count, gpu, memory_gib, ram, nvme_tb, gigabits = INSTANCES[name]
    known = GPUS[gpu]
    hardware = Hardware(12 * count, ram, cpu_bf16=True,
                        gpus=((gpu, float(memory_gib or known.memory_gib), known.capability),) * count)  # fmt: skip
    return Cluster(hardware, nodes, gigabits * 1e9 / 8, nvme_tb * 1e12 / GIB, name)
