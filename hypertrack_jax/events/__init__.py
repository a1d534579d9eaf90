"""What happened in the detector: events, their files, simulation, pile-up, truth."""
