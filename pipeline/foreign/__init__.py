"""What comes from elsewhere or goes there: weights of others, the hub, releases."""
