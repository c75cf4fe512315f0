"""The paper's tables and figures as named targets: what they need, and the paper's numbers beside ours."""
