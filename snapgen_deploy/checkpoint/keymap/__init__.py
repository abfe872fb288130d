r"""Key maps: from the tensors of a foreign checkpoint to ours.

A key map is a JSON or TOML file of rules, foreign name -> our name, with patterns on both sides (see `pattern`):

    "net.patch.weight" = "student.patch.weight"                       # one tensor (TOML: quote names that have dots)
    "blocks.{i:0..3}.q.{p:*}" = "student.down.{i}.attention.q.{p}"    # one for each number
    "blocks.{i:4..9}.q.{p:*}" = "student.middle.{i-4}.attention.q.{p}"
    "net.{i}.kv.{p:*}" = ["student.down.{i}.cross.k.{p}", "student.down.{i}.cross.v.{p}"]    # taken apart along axis 0
    "net.{i}.{x:w1|w3}" = { to = "student.down.{i}.w", axis = 0 }                            # joined
    "step" = []                                                       # left out
    drop = ['ema\..*']                                                # the same by regular expressions of whole names

    [words.block]                                                     # what {block} stands for, and what we write for it
    "{i:0..3}" = "down.{i}"

    [prefix]                                                          # replaces the beginning of a name
    "vae.decoder." = "decoder."

    [regex]                                                           # replaces a whole name; \1 or \g<name> insert groups
    'net\.stage0\.(\d+)\.(.*)' = 'student.down.\1.\2'

For each name the first that applies is used, in this order: drop, one tensor, patterns in the order of the file, the longest
prefix, the regular expressions. A name to which no rule applies stays as it is. A rule that applies to no tensor is an error
unless it is `optional`, and so are two names that become the same.
"""

from snapgen_deploy.checkpoint.keymap.load import key_map_of, load_key_map
from snapgen_deploy.checkpoint.keymap.matching import KeyMap, Matching
from snapgen_deploy.checkpoint.keymap.recipe import TensorChange, TensorRecipe

__all__ = ["KeyMap", "Matching", "TensorChange", "TensorRecipe", "key_map_of", "load_key_map"]
