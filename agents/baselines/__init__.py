"""What a policy is compared with: fixed and shorter routes, Gumbel gates, confidence exits, each trained as the policy's network is."""
