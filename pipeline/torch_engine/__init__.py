"""Training with torch, timm and peft."""
