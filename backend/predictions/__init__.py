"""What one prediction request means: projects, parameters, prompts, answers."""
