"""This machine, and hosts that ssh reaches: a process of ours stays with a job after the command that sent it."""
