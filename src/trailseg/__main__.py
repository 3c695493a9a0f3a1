"""`python -m trailseg`, the same as `trailseg`."""

from trailseg.cli import main

main()
