"""`python -m audiovae_jax COMMAND`, and the entry `audiovae-jax`."""

from audiovae_jax.commands import cli

if __name__ == "__main__":
    cli.main()
