"""Where a job runs. Pure: imports neither torch nor transformers nor deepspeed."""
