"""What is done with values: levels of groups, shares, payouts, overlap, what if."""
