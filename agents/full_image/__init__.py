"""Networks that see the whole canvas at once: bounds for agents that must choose where to look."""
