"""How large a model does ZeRO-Inference run, against the memory that it takes for itself?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest
from contest import Result
from reporting import Figure, Report, machine, parser, publish, ratio

TITLES = {"cpu": "weights in host memory, split over two ranks", "nvme": "weights on the disk, one rank"}
COLUMNS = ("how", "weights GiB", "own memory GiB", "seconds a token", "on the disk GiB")
GIB = 2**30
POLL_SECONDS = 0.05
HIDDEN, NEW_TOKENS = 1024, 4
RANK = "velocity.inference.run"


def make_model(folder: Path, layers: int) -> int:
    """`folder` holds a random Llama with a tokenizer of a few words; the bytes of its weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=4096, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=4, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(folder), max_shard_size="500MB")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")  # noqa: S106
    fast.save_pretrained(str(folder))
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def run(name: str, model: Path, place: Path) -> Result:
    """One generate job; the most memory that its largest rank had to itself: file pages are the system's to take."""
    prompts = place / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"a b {letter} d e"}) + "\n" for letter in "cdefghij"))
    overrides = ["generation.engine=zero", f"strategy.offload.parameters={name}"]
    if name == "nvme":
        overrides.append(f"strategy.offload.path={place / 'disk'}")
    job = {"task": "generate", "model": str(model), "output": str(place / name), "data": {"prompts": str(prompts)},
           "generation": {"max_new_tokens": NEW_TOKENS}, "strategy": {"precision": "fp32"}}  # fmt: skip
    (place / "job.yaml").write_text(json.dumps(job))
    count = "2" if name == "cpu" else "1"
    command = [sys.executable, "-m", "velocity", "run", str(place / "job.yaml"), *overrides, "--processes", count]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = disk = 0
    while process.poll() is None:
        peak = max([peak, *map(_own_bytes, _ranks(str(place / name)))])
        disk = max(disk, sum(_size(file) for file in (place / "disk").rglob("*.swp")))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        said = process.stderr.read() if process.stderr else ""
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}:\n{said}")
    lines = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    busy = max(line["seconds"] for line in lines if "seconds" in line)
    seconds = time.perf_counter() - started
    return {"peak_bytes": peak, "disk_bytes": disk, "token_seconds": busy / NEW_TOKENS, "seconds": seconds}


def _ranks(run_folder: str) -> list[int]:
    """The ranks of a run; not the agent that started them, whose command names their module as well."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if "velocity.distributed.begin" in words and words[-3:-1] == [RANK, run_folder]:
                found.append(int(entry.name))
    return found


def _own_bytes(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:")), 0)


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def measure(layers: int) -> Report:
    """One model, run in each way."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        weights = make_model(place / "model", layers)
        results = contest.hold(list(TITLES), 1, lambda name: run(name, place / "model", place))
    rows = [
        [TITLES[name], f"{weights / GIB:.2f}", f"{r['peak_bytes'] / GIB:.2f}", f"{r['token_seconds']:.2f}",
         f"{r['disk_bytes'] / GIB:.2f}"]
        for name, r in results.items()
    ]  # fmt: skip
    figures = [
        Figure(f"weights against own memory, {TITLES[name]}", ratio(weights, result["peak_bytes"]))
        for name, result in results.items()
    ]
    notes = [
        f"a random Llama of {layers} layers in fp32, 8 prompts, {NEW_TOKENS} new tokens; own memory is the anonymous "
        "pages of the largest rank, libraries included: pages of the model's files are the system's to take",
    ]
    facts = {"layers": layers, "weights_bytes": weights, "results": results}
    return Report("stream_memory", str(__doc__), COLUMNS, rows, figures, notes, facts)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--layers", type=int, default=64)
    given = options.parse_args()
    before = machine()
    publish(measure(4 if given.quick else given.layers), before, save=given.save)


if __name__ == "__main__":
    main()
