"""Stable-Baselines3 agents: recurrent PPO and its memoryless control."""
