"""Turn one of NVIDIA's StyleGAN3 networks into the folder that the web page makes faces with.

    python convert_stylegan3.py stylegan3-r-ffhqu-256x256.pkl      → weights/stylegan3/

The networks are on NVIDIA's page
https://catalog.ngc.nvidia.com/orgs/nvidia/teams/research/models/stylegan3, under a licence for
research and evaluation. Of the pickle nothing is run: it is read as data, and any other file is
refused. The folder appears whole or not at all; nothing in it is a pickle.
"""

from pathlib import Path

from pipeline.common.command_line import run, script_parser
from pipeline.service.generation import GENERATOR, LICENCE, convert


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("pickle", type=Path, metavar="FILE.pkl", help="one of NVIDIA's networks")
    parser.add_argument("--output", type=Path, default=GENERATOR, metavar="DIR")
    args = parser.parse_args()

    arguments = convert(args.pickle, args.output)
    kind = "R" if arguments.get("use_radial_filters") else "T"
    size = arguments["img_resolution"]
    print(f"{args.output}: StyleGAN3-{kind}, {size} × {size} pixels.\n{LICENCE}")


if __name__ == "__main__":
    run(main)
