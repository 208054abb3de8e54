"""Speed, measured against what a user would otherwise take; `make bench` and `make bench-data`."""
