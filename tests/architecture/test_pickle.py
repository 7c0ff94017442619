"""Nothing of ours loads a pickle, which may do anything when it is read: no setting is needed that allows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.repository import source_files, syntax

MODULES = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Functions that read pickles, or that pass one to whoever they call.
CALLS = {"load_checkpoint", "load_from_pickle", "loads", "read_pickle", "unsafe_load"}
# torch and numpy load pickles under a harmless name.
LOADS = {"torch.load", "torch.jit.load", "torch.package", "torch.hub.load", "np.load", "numpy.load"}
# Ranks of one job exchange plain values over their own process group: the same program, started by the same user with
# the same command, which can make each other do anything anyway. None of it lies in a file or comes from elsewhere.
BETWEEN_RANKS = {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"}
MAY_EXCHANGE = {
    "src/velocity/distributed/comm.py": "what rank 0 decided",
    "src/velocity/distributed/pipeline_engine.py": "losses, and the shapes of the stages",
    "src/velocity/inference/deepspeed_engine.py": "the prompts that ranks with one model work on together",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name with attributes; `.b.c` of those of any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def pickles(tree: ast.AST) -> Iterator[str]:
    """`line: what` of each place that imports a pickle's module, or loads what may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "torch.jit", "torch.hub"):
                yield from (f"{node.lineno}: {alias.name}" for alias in node.names if alias.name == "load")
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            allows = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            numpy_loads = name in ("np.load", "numpy.load") and allows.get("allow_pickle", "False") == "False"
            if (name in LOADS and not numpy_loads) or (name.split(".")[-1] in CALLS and name != "json.loads"):
                yield f"{node.lineno}: {name}"
            if allows.get("use_safetensors") == "False" or allows.get("weights_only") == "False":
                yield f"{node.lineno}: {name} with a pickle's setting"
            model = name.split(".")[-2:] in (
                ["AutoModelForCausalLM", "from_pretrained"],
                ["AutoModel", "from_pretrained"],
            )
            if model and allows.get("use_safetensors") != "True":
                yield f"{node.lineno}: {name} without use_safetensors=True"


def exchanges(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in BETWEEN_RANKS for node in ast.walk(tree))


def test_nothing_loads_a_pickle():
    found = [f"{path}:{what}" for path in source_files() for what in pickles(syntax(path))]
    assert not found, "use safetensors, JSON, Arrow, or an array without objects:\n" + "\n".join(found)


def test_values_are_exchanged_between_ranks_only_where_it_is_said_why():
    assert {path for path in source_files() if exchanges(syntax(path))} == set(MAY_EXCHANGE)


def test_what_loads_a_pickle_is_found():
    text = """
import pickle
import torch, joblib.numpy_pickle
from dill import loads
from torch import load
torch.load("a", weights_only=True)
np.load("a")
np.load("a", allow_pickle=False)
np.load("a", allow_pickle=True)
np.load("a", allow_pickle=maybe)
json.loads("a")
self.engine.load_checkpoint("a")
pandas.read_pickle("a")
AutoModelForCausalLM.from_pretrained("a")
AutoModelForCausalLM.from_pretrained("a", use_safetensors=True)
anything("a", use_safetensors=False)
"""
    lines = [int(what.split(":")[0]) for what in pickles(ast.parse(text))]
    assert sorted(lines) == [2, 3, 4, 5, 6, 9, 10, 12, 13, 14, 16]
