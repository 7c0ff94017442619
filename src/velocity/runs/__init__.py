"""Run folders: what lies where, who owns one, and jobs that start from another's output. It knows no task."""
