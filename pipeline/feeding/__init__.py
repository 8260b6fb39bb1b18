"""What a network is shown while it trains."""
