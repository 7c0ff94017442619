"""How many tokens a second does one GPU train, in which share of its arithmetic and its memory, against TRL?"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import contest
import ragged
from contest import Result
from reporting import Figure, Report, machine, parser, publish, ratio
from train_contenders import CONTENDERS, job_text
from train_throughput import check_equal_work, tokens_per_second

CHILD = Path(__file__).with_name("train_contenders.py")
COLUMNS = ("model", "contender", "tokens/s", "of the peak", "GiB", "planned")
NAMES = ("velocity-auto", "trl-padded-bf16", "trl-padded-bf16-kept", "trl-packed-bf16")
LENGTH = 8192  # tokens of a row, and of an optimizer step
# The shapes of Llama 3.2 1B and 3B and of Llama 3.1 8B; `tiny` is for a smoke run, on a processor too.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
SENTENCE = "the length of every input is checked before it is copied into a buffer that holds no more bytes"


def make_model(folder: Path, shape: Mapping[str, Any]) -> None:
    """`folder` is a Hugging Face model of this shape with random weights in bf16, and a tokenizer for the chats."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([SENTENCE], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chats(count: int) -> Iterator[dict[str, Any]]:
    """Chats whose answers have 20 to about 3,000 words, the same ones on every machine."""
    draw, vocabulary = random.Random(0), SENTENCE.split()
    for number in range(count):
        words = min(3000, int(20 * draw.paretovariate(0.8)))
        answer = " ".join(draw.choice(vocabulary) for _ in range(words))
        turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]
        yield {"messages": turns}


def measure(shape: str, row_count: int, rounds: int, names: Sequence[str]) -> tuple[dict[str, Result], float, float]:
    """All contenders on one shape; the model's parameters, and the bytes that the plan foresees for Velocity."""
    from velocity.config.load import load_job
    from velocity.planner.memory import state_bytes
    from velocity.planner.size import model_size

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        subprocess.run([sys.executable, __file__, "--make", shape, str(place / "model")], check=True)
        ragged.write_records(place / "chats.jsonl", chats(row_count))
        file = place / "job.yaml"
        file.write_text(job_text(place / "model", place / "chats.jsonl", place, length=LENGTH))
        plain, ours = contest.plain_environment(place), contest.velocity_environment(place)

        def run(name: str) -> Result:
            return contest.run_script(CHILD, [name, str(file)], ours if CONTENDERS[name].our_environment else plain)

        results = contest.hold(names, rounds, run)
        size, job = model_size(place / "model"), load_job(file).job
    assert size is not None, "the model was just written"
    check_equal_work(results)
    return results, size.parameters, state_bytes(job, size, "bf16", 1, 1)


def rows(shape: str, results: Mapping[str, Result], parameters: float, planned: float, gpu: str) -> list[list[str]]:
    """A line a contender; the plan is of Velocity's model state alone, without activations."""
    from velocity.training.metrics import model_flops_utilisation

    lines = []
    for name, result in results.items():
        used = model_flops_utilisation(int(parameters), int(parameters), tokens_per_second(result), gpu, 1)
        lines.append([
            shape, CONTENDERS[name].title, f"{tokens_per_second(result):,.0f}", "" if used is None else f"{used:.1%}",
            f"{result['device_bytes'] / 2**30:.1f}", f"{planned / 2**30:.1f}" if name.startswith("velocity") else "",
        ])  # fmt: skip
    return lines


def figures(shape: str, results: Mapping[str, Result]) -> list[Figure]:
    """Velocity's tokens a second over those of each TRL."""
    ours = tokens_per_second(results["velocity-auto"])
    return [
        Figure(f"{shape}: against {CONTENDERS[name].title}", ratio(ours, tokens_per_second(result)))
        for name, result in results.items()
        if name != "velocity-auto"
    ]


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1B", "3B"])
    options.add_argument("--rows", type=int, default=256, help="chats")
    options.add_argument("--rounds", type=int, default=1)
    given = options.parse_args()
    before = machine()
    shapes, row_count = (["tiny"], 16) if given.quick else (given.shapes, given.rows)
    gpus = before["hardware"]["gpus"]
    lines: list[list[str]] = []
    found: list[Figure] = []
    facts: dict[str, Any] = {}
    for shape in shapes:
        results, parameters, planned = measure(shape, row_count, given.rounds, NAMES)
        lines += rows(shape, results, parameters, planned, gpus[0][0] if gpus else "")
        found += figures(shape, results)
        facts[shape] = results
    notes = [
        f"random weights, ragged chats in rows of {LENGTH} tokens, AdamW, one GPU; best of {given.rounds} round(s)"
    ]
    publish(Report("gpu_throughput", str(__doc__), COLUMNS, lines, found, notes, facts), before, save=given.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_model(Path(sys.argv[3]), SHAPES[sys.argv[2]])
    else:
        main()
