"""What happens around a network, one step to a file, named after the step."""
