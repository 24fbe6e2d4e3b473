"""What a command is: its name, what it takes, and the function that does it."""

import dataclasses
from collections.abc import Callable

GOES_ON = "what was saved is whole, and the same command goes on from there"
MODEL = "MODEL"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of one form: the model, inputs, the output, then flags.

    Attributes:
      name: as users type it.
      description: of what it does, for `--help`.
      main: takes the positional arguments, reads flags.
      positional: their names; a name that ends in "..." stands for one or more, one in brackets for one or none.
      define_flags: defines its flags, and no others.
      bucket_output: whether OUT may be the URL of a bucket.
      old_model_flag: whether `--model=MODEL` was its form before, and is still taken.
      interrupted: what someone who stops it with Ctrl-C should know.
    """

    name: str
    description: str
    main: Callable[..., None]
    positional: tuple[str, ...] = ()
    define_flags: Callable[[], None] = lambda: None
    bucket_output: bool = False
    old_model_flag: bool = False
    interrupted: str = GOES_ON
