"""Parts of the fault campaign; each is a function of a work directory and the number of a try."""
