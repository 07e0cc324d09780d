"""Agents that train the jump policy: REINFORCE, and Stable-Baselines3's PPO; where their prices come from, and calibration."""
