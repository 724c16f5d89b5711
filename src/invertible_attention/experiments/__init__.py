"""The paper's experiments, and what they share: data, metrics, reports."""
