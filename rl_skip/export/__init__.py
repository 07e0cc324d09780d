"""What leaves a run: the folder of a policy, of a pruned network, their descriptions, weights and model card."""
