"""What is written for use elsewhere: the folder of a policy, of a pruned network, their descriptions, weights and model card."""
