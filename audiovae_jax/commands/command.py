"""The description of a command: its name, arguments, flags and main function."""

import dataclasses
from collections.abc import Callable

GOES_ON = "what was saved is whole, and the same command goes on from there"
MODEL = "MODEL"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with the arguments model, inputs, output, then flags.

    Attributes:
      name: the name that users type.
      description: text for `--help`.
      main: function that takes the positional arguments and reads the flags.
      positional: names of the positional arguments. A name that ends in "..." stands for one or more arguments. A name
        in brackets is optional.
      define_flags: function that defines the command's flags.
      bucket_output: whether OUT may be the URL of a bucket.
      old_model_flag: whether the older form `--model=MODEL` is still accepted.
      interrupted: message after Ctrl-C.
    """

    name: str
    description: str
    main: Callable[..., None]
    positional: tuple[str, ...] = ()
    define_flags: Callable[[], None] = lambda: None
    bucket_output: bool = False
    old_model_flag: bool = False
    interrupted: str = GOES_ON
