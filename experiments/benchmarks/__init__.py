"""How long the work takes and what it needs, beside the programs that do the same."""
