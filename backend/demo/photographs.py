"""The demo's photographs: public domain or CC0, carried by packages that the product depends on anyway."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: Package, file in it. Licences as scikit-image's and matplotlib's documentation state them.
FILES = (
    ("skimage", "data/coffee.png"),  # CC0, Rachel Michetti
    ("skimage", "data/astronaut.png"),  # public domain, NASA
    ("skimage", "data/rocket.jpg"),  # public domain, SpaceX
    ("skimage", "data/camera.png"),  # CC0, Lav Varshney
    ("skimage", "data/coins.png"),  # no known copyright restrictions, Brooklyn Museum
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # public domain, US Navy
)
CREDIT = (
    "Photographs from scikit-image and matplotlib: NASA, SpaceX and US Navy (public domain), Rachel Michetti and Lav "
    "Varshney (CC0), Brooklyn Museum (no known copyright restrictions)."
)
#: COCO's among them are outlined at once, the others are for the smart tools.
LABELS = ("cup", "tie", "person", "spoon", "coin", "rocket", "helmet", "saucer")


def copy_photographs(folder: Path) -> list[Path]:
    """The photographs in `folder`; existing ones are kept, those of a package that has none any more are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for package, name in FILES:
        source, target = _package_folder(package) / name, folder / Path(name).name
        if not target.exists() and source.is_file():
            unfinished = target.with_suffix(".part")
            shutil.copyfile(source, unfinished)
            unfinished.rename(target)
        if target.exists():
            paths.append(target)
    return paths


def _package_folder(package: str) -> Path:
    """Where a package lies; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
