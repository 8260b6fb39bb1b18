"""What every request passes on its way to the web service and back."""
