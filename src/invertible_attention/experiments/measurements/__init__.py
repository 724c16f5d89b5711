"""What is shown of the files that single scripts write, one module per kind."""
