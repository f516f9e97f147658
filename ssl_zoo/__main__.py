"""The command line: `ssl-zoo` or `python -m ssl_zoo`. Nothing heavy is imported before it is needed."""

import sys
from importlib import import_module

HELP = """usage: ssl-zoo COMMAND ...

  recipes   list what there is to run:       ssl-zoo recipes
  fit       pretrain on a folder of images:  ssl-zoo fit my_images
            or by a recipe:                  ssl-zoo fit --config cifar10/simclr
  evaluate  measure and compare encoders:    ssl-zoo evaluate runs/quickstart/version_0/encoder.safetensors
  validate  evaluate a checkpoint:           ssl-zoo validate --config CONFIG --ckpt_path CHECKPOINT
  compare   recipes over several seeds:      ssl-zoo compare cifar10/simclr cifar10/moco --seeds 3
  preview   a picture of a recipe's views:   ssl-zoo preview --config cifar10/simclr
  bench     what limits a recipe here:       ssl-zoo bench --config cifar10/simclr
  embed     the features of images, a file:  ssl-zoo embed ENCODER my_images --output features.parquet
  similar   the images nearest to one:       ssl-zoo similar ENCODER QUERY --among my_images
  duplicates  groups of near duplicates:     ssl-zoo duplicates ENCODER my_images
  export    the encoder of a checkpoint:     ssl-zoo export CHECKPOINT
  shard     images as WebDataset's tar files: ssl-zoo shard my_images my_shards
  new       begin a method of your own:      ssl-zoo new Align
  check     whether it keeps the contract:   ssl-zoo check align.Align

  ssl-zoo fit my_images --quiet              only warnings, errors and the table at the end
  ssl-zoo fit --help                         every option of a run
  ssl-zoo fit --model.help SimCLR            every option of a method; likewise --data.help ImageFolder
  ssl-zoo fit --config RECIPE --print_config the whole configuration, defaults included
  ssl-zoo --version
"""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif arguments[0] == "--version":
        print(f"ssl_zoo {import_module('ssl_zoo').__version__}")
    else:
        import_module("ssl_zoo.cli").run(arguments)


if __name__ == "__main__":
    main()
