"""Where the state lives: engines, ranks and the configuration of DeepSpeed."""
