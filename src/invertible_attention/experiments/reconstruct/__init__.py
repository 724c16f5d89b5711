"""The paper's first experiment: train one attention block on images, invert it, measure what comes back."""
