"""Server recipes: one TOML file a server, read by `mxfp4_validate.serverspec`."""
