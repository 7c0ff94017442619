"""`python -m velocity` is `velocity`."""

from velocity.cli import main

main()
