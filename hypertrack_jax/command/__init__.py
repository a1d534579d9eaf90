"""The command `hypertrack`, and what every program does before and after its work."""
