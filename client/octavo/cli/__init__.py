"""The `octavo` command. One module per subcommand; what a subcommand needs, it imports itself."""
