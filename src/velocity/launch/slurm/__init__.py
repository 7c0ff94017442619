"""A Slurm cluster, from a machine that has its sbatch."""
