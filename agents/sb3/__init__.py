"""Stable-Baselines3 agents: recurrent PPO, and PPO without memory as its control."""
