"""Which strategy fits the machine, and why. Pure: imports neither torch nor transformers nor deepspeed."""
