"""One page from any set of result folders: the paper's tables and figures beside ours."""
