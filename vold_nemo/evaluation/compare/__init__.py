"""Any evaluations side by side, question by question."""
