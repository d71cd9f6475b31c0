"""What training costs: memory, arithmetic and time, from dimensions alone. Nothing here imports torch but forecast."""
