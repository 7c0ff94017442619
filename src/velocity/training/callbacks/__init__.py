"""What a run tells, and to whom. Callbacks live on rank 0."""
