"""Plans: one TOML file a plan, read by `mxfp4_validate.plans.files`."""
