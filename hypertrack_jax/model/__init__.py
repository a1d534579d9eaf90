"""What a trained model is: its arrays by name, weights files and checkpoints."""
