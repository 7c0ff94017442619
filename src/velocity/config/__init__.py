"""What a user can set. Pure: imports neither torch nor transformers nor deepspeed."""
