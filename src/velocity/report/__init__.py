"""What happened: a run, or several side by side, as one page. It trains and scores nothing."""
