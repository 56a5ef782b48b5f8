"""What a model file is made of, read from its bytes under limits; and what the runtime's optimiser makes of it, in a child process."""
