"""From a job file to a run: planned, checked, started, concluded. Here planner, launch and the tasks meet."""
