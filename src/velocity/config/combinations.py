"""What goes with what: the one table from which errors, documentation, tests and the planner's choices are made.

A clash is between two settings of a job. A limit is between a setting and the machine or the model. Each one says why,
and names the nearest thing that works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """Some values of one key of a job; `words` name them in the table."""

    key: str
    words: str
    holds: Callable[[Any], bool]  # of the key's value

    def of(self, job: Any) -> bool:
        """True where the job sets it so."""
        value = value_of(job, self.key)
        return value is not None and self.holds(value)


def value_of(job: Any, key: str) -> Any:
    """The value of a dotted key; None where a section on the way is left out."""
    for name in key.split("."):
        job = getattr(job, name, None)
    return job


def one_of(key: str, *values: Any) -> Setting:
    """The key has one of these values."""
    return Setting(key, " or ".join(str(value) for value in values), lambda value: value in values)


def above(key: str, limit: int) -> Setting:
    """The key is a number above the limit."""
    return Setting(key, f"above {limit}", lambda value: value != "auto" and value > limit)


def below(key: str, limit: float) -> Setting:
    """The key is a number below the limit."""
    return Setting(key, f"below {limit:g}", lambda value: value < limit)


def given(key: str) -> Setting:
    """The key is there."""
    return Setting(key, "set", lambda value: True)


@dataclass(frozen=True)
class Clash:
    """Two settings that do not go together, why, and what to do instead."""

    one: Setting
    other: Setting
    why: str
    use: str

    def found(self, job: Any) -> str | None:
        """What is said of a job that has both."""
        if not (self.one.of(job) and self.other.of(job)):
            return None
        return f"{_said(job, self.one)} does not go with {_said(job, self.other)}: {self.why}; use {self.use}"


@dataclass(frozen=True)
class Facts:
    """What of the machine and the model limits a strategy; 0 where it is not known."""

    gpus: bool = False
    processes: int = 0
    query_heads: int = 0
    key_heads: int = 0
    layers: int = 0
    architecture: str = ""


@dataclass(frozen=True)
class Limit:
    """A setting that asks something of the machine or the model."""

    setting: Setting
    asks: str  # what for, in the table
    met: Callable[[Any, Facts], bool]  # by the setting's value
    use: str

    def found(self, job: Any, facts: Facts) -> str | None:
        """What is said of a job whose setting asks for what is not there."""
        if not self.setting.of(job) or self.met(value_of(job, self.setting.key), facts):
            return None
        asks = self.asks.format(**vars(facts))
        return f"{_said(job, self.setting)} asks for {asks}; use {self.use}"


def _said(job: Any, setting: Setting) -> str:
    value = value_of(job, setting.key)
    return setting.key if setting.words == "set" else f"{setting.key}={value}"


ZERO, OPTIMIZER, PARAMETERS = "strategy.zero", "strategy.offload.optimizer", "strategy.offload.parameters"
TENSOR, PIPELINE, SEQUENCE = "strategy.tensor", "strategy.pipeline", "strategy.sequence"
PRECISION, OVERLAP, STATES = "strategy.precision", "strategy.offload.overlap", "strategy.states"
PLUS = "strategy.zero_plus_plus"
# Those that were compared with one process, losses and gradient norms: in tests/invariance, test_tensor.py with their
# matrices split, test_architectures.py cut into stages and spread along sequences. The planner spreads these by itself.
SPLIT_ARCHITECTURES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "cohere", "cohere2", "olmo",
    "smollm3", "starcoder2", "phi", "ministral", "helium", "exaone4", "seed_oss", "ernie4_5", "arcee",
)  # fmt: skip
NOT_STAGED = ("granite", "phi")  # one multiplies embeddings in the forward of every stage, one calls its norm otherwise
NOT_SEQUENCED = ("gemma2",)  # it softens attention scores, which variable-length attention does not
ONE_AXIS = "DeepSpeed trains with one of tensor, pipeline and sequence beside data"
NOT_AT_ZERO_0 = "ZeRO 0 keeps everything on every device"
NOT_ADAMW = ("adamw_8bit", "lion", "muon", "sgd")  # adafactor is refused with ZeRO altogether
WHOLE_MATRIX = "ZeRO hands the optimizer flat pieces, of which it cannot see rows and columns"

CLASHES: tuple[Clash, ...] = (
    Clash(one_of(ZERO, 0), one_of(PRECISION, "bf16", "fp16"),
          "DeepSpeed's stage 0 in 16 bit is another optimizer, whose losses differ by more than rounding",
          "strategy.zero: 1, which costs no more"),
    Clash(one_of(ZERO, 3), given("adapter.bits"), "quantised weights are not split", "strategy.zero: 2"),
    Clash(one_of(OPTIMIZER, "cpu", "nvme"), one_of(ZERO, 0), NOT_AT_ZERO_0, "strategy.zero: 1"),
    Clash(one_of(PARAMETERS, "cpu", "nvme"), one_of(ZERO, 0, 1, 2), "only ZeRO 3 fetches weights as they are needed",
          "strategy.zero: 3"),
    Clash(one_of(OPTIMIZER, "nvme"), one_of(ZERO, 1, 2), "only ZeRO 3 swaps the optimizer's state to a disk",
          "strategy.zero: 3, or strategy.offload.optimizer: cpu"),
    Clash(below("strategy.offload.ratio", 1), one_of(ZERO, 0, 1, 2), "only ZeRO 3 splits the optimizer's step",
          "strategy.zero: 3, or strategy.offload.ratio: 1"),
    Clash(below("strategy.offload.ratio", 1), one_of(OPTIMIZER, "none", "nvme"),
          "it is the share of the optimizer's state that goes to host memory", "strategy.offload.optimizer: cpu"),
    Clash(one_of("strategy.offload.activations", "cpu"), one_of("strategy.recompute", "none"),
          "what is offloaded is what recomputation keeps", "strategy.recompute: layers"),
    Clash(above(TENSOR, 1), above(PIPELINE, 1), ONE_AXIS, "one of the two"),
    Clash(above(TENSOR, 1), above(SEQUENCE, 1), ONE_AXIS, "one of the two"),
    Clash(above(PIPELINE, 1), above(SEQUENCE, 1), ONE_AXIS, "one of the two"),
    Clash(above(TENSOR, 1), one_of(ZERO, 0), "at stage 0 a process sees the norm of its own part alone",
          "strategy.zero: 1, which costs no more"),
    Clash(above(TENSOR, 1), one_of("optimizer.kind", "muon"), "Muon orthogonalises whole matrices, not parts of them",
          "strategy.zero: 3 in place of it, or optimizer.kind: adamw"),
    Clash(above(TENSOR, 1), above(f"{PLUS}.secondary", 1),
          "hpZ groups neighbours, who hold different parts of a matrix", f"{PLUS}.secondary: 1"),
    Clash(above(TENSOR, 1), one_of(f"{PLUS}.quantised_gradients", True),
          "qgZ groups neighbours, who hold different parts of a matrix", f"{PLUS}.quantised_gradients: false"),
    Clash(above(TENSOR, 1), one_of(f"{PLUS}.quantised_weights", True),
          "nobody has compared the two, neither DeepSpeed's tests nor ours", f"{PLUS}.quantised_weights: false"),
    Clash(above(TENSOR, 1), given("adapter"), "an adapter's layers are not split", "strategy.zero: 3 in place of it"),
    Clash(above(PIPELINE, 1), one_of(ZERO, 0), "at stage 0 a process sees the norm of its own stage alone",
          "strategy.zero: 1, which costs no more"),
    Clash(above(PIPELINE, 1), one_of(ZERO, 2, 3), "a stage needs its gradients whole until its last micro-batch",
          "strategy.zero: 1"),
    Clash(above(PIPELINE, 1), given("adapter"), "an adapter's model is not cut into stages",
          "strategy.zero: 3 in place of it"),
    Clash(above(PIPELINE, 1), one_of("preference.kind", "kto"), "KTO scores two batches a step, a pipeline one",
          "strategy.zero: 3 in place of it"),
    Clash(above(PIPELINE, 1), one_of("preference.reference", "live"), "a live reference is a second model",
          "preference.reference: cached"),
    Clash(above(PIPELINE, 1), one_of("strategy.compile", "layers", "deepcompile"),
          "activations of changing shapes travel between stages", "strategy.compile: none"),
    Clash(above(SEQUENCE, 1), one_of("model.attention", "sdpa", "eager", "flash_attention_2"),
          "only variable-length attention keeps packed sequences apart when they are spread", "model.attention: auto"),
    Clash(one_of(STATES, "bf16"), one_of(PRECISION, "fp32", "fp16"), "they are the states of bf16 weights",
          "strategy.precision: bf16"),
    Clash(one_of(STATES, "bf16"), one_of(OPTIMIZER, "cpu", "nvme"),
          "an offloaded optimizer keeps fp32 states", "strategy.states: fp32"),
    Clash(one_of(OVERLAP, "superoffload"), one_of(ZERO, 0, 1, 2), "SuperOffload is built on ZeRO 3",
          "strategy.zero: 3"),
    Clash(one_of(OVERLAP, "superoffload"), one_of(OPTIMIZER, "none", "nvme"),
          "it overlaps an optimizer that steps in host memory", "strategy.offload.optimizer: cpu"),
    Clash(one_of(STATES, "bf16"), one_of("optimizer.kind", "adamw_8bit"), "its states have 8 bit",
          "strategy.states: fp32"),
    Clash(below("strategy.offload.ratio", 1), one_of("optimizer.kind", *NOT_ADAMW),
          "DeepSpeed splits the step of its own AdamW alone", "strategy.offload.ratio: 1, or optimizer.kind: adamw"),
    Clash(one_of(OVERLAP, "superoffload"), one_of("optimizer.kind", *NOT_ADAMW),
          "DeepSpeed overlaps its own AdamW alone", "strategy.offload.overlap: none, or optimizer.kind: adamw"),
    Clash(one_of(OPTIMIZER, "nvme"), one_of("optimizer.kind", "adamw_8bit", "lion", "muon"),
          "DeepSpeed swaps states in fp32 that it knows", "strategy.offload.optimizer: cpu, or optimizer.kind: adamw"),
    Clash(one_of("optimizer.kind", "muon"), above("optimizer.gradient_clipping", 0),
          "ZeRO would clip what Muon has made of the gradient, which is as long whatever the gradient is",
          "optimizer.gradient_clipping: 0"),
    Clash(one_of(f"{PLUS}.quantised_weights", True), one_of(ZERO, 0, 1, 2), "only ZeRO 3 gathers weights",
          "strategy.zero: 3"),
    Clash(one_of(f"{PLUS}.quantised_gradients", True), one_of(ZERO, 0, 1, 2), "only ZeRO 3 reduces them so",
          "strategy.zero: 3"),
    Clash(above(f"{PLUS}.secondary", 1), one_of(ZERO, 0, 1, 2), "only ZeRO 3 splits weights", "strategy.zero: 3"),
    Clash(one_of("optimizer.kind", "adafactor"), one_of(ZERO, 1, 2, 3), WHOLE_MATRIX,
          "strategy.zero: 0 in fp32, or optimizer.kind: adamw_8bit"),
)  # fmt: skip


def _divides(number: str) -> Callable[[Any, Facts], bool]:
    return lambda value, facts: not getattr(facts, number) or getattr(facts, number) % value == 0


def _on_gpus(value: Any, facts: Facts) -> bool:
    return facts.gpus


LIMITS: tuple[Limit, ...] = (
    Limit(one_of(PRECISION, "fp16"), "a GPU", _on_gpus, "strategy.precision: auto, bf16 or fp32"),
    Limit(above(TENSOR, 1), "a number of processes that it divides, not {processes}", _divides("processes"),
          "a divisor"),
    Limit(above(PIPELINE, 1), "a number of processes that it divides, not {processes}", _divides("processes"),
          "a divisor"),
    Limit(above(SEQUENCE, 1), "a number of processes that it divides, not {processes}", _divides("processes"),
          "a divisor"),
    Limit(above(TENSOR, 1), "key heads that it divides, and the model has {key_heads}", _divides("key_heads"),
          "a divisor, or strategy.zero: 3"),
    Limit(above(TENSOR, 1), "an architecture whose layers are known to split right, not {architecture}",
          lambda value, facts: facts.architecture in ("", *SPLIT_ARCHITECTURES),
          f"strategy.zero: 3, or one of {', '.join(SPLIT_ARCHITECTURES)}"),
    Limit(above(SEQUENCE, 1), "attention heads that it divides, and the model has {query_heads}",
          _divides("query_heads"), "a divisor, or a shorter data.sequence_length with strategy.recompute: layers"),
    Limit(above(SEQUENCE, 1), "attention without softened scores, not {architecture}",
          lambda value, facts: facts.architecture not in NOT_SEQUENCED,
          "strategy.pipeline or strategy.tensor, with model.attention: eager"),
    Limit(above(PIPELINE, 1), "an architecture that is an embedding, a row of layers and a norm, not {architecture}",
          lambda value, facts: facts.architecture not in NOT_STAGED, "strategy.tensor, or strategy.zero: 3"),
    Limit(above(PIPELINE, 1), "at least as many layers, and the model has {layers}",
          lambda value, facts: not facts.layers or value <= facts.layers, "fewer stages"),
    Limit(one_of(OVERLAP, "superoffload"), "a GPU that computes beside the host", _on_gpus,
          "strategy.offload.overlap: none"),
    Limit(one_of("strategy.compile", "deepcompile"), "a GPU", _on_gpus, "strategy.compile: layers or none"),
    Limit(one_of(f"{PLUS}.quantised_weights", True), "a GPU, whose kernels quantise", _on_gpus, "false"),
    Limit(one_of(f"{PLUS}.quantised_gradients", True), "a GPU, whose kernels quantise", _on_gpus, "false"),
)  # fmt: skip


def clashes(job: Any) -> Iterator[str]:
    """What of a job does not go together."""
    return (said for clash in CLASHES if (said := clash.found(job)))


def limits(job: Any, facts: Facts) -> Iterator[tuple[str, str]]:
    """What of a job the machine or the model cannot do: the key, and what is said."""
    return ((limit.setting.key, said) for limit in LIMITS if (said := limit.found(job, facts)))
