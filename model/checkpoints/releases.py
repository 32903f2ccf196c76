"""The checkpoints that the authors of Mask Transfiner released, and where they are. Free of torch.

Source of names, figures and links: the README of the public repository SysCV/transfiner.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where the authors keep the files; `confirm=t` answers the question that a browser shows for large ones.
DOWNLOAD_URL = "https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


@dataclass(frozen=True)
class Release:
    """One released checkpoint.

    Attributes:
        name: what `transfiner models fetch` calls it.
        config: its configuration under `model/configs/`.
        file_id: of its download.
        figures: what the authors report for it.
    """

    name: str
    config: str
    file_id: str
    figures: str

    @property
    def knows(self) -> str:
        """The classes that it was trained on."""
        return "LVIS's 1230 classes" if "LVIS" in self.name else "COCO's 80 classes"

    @property
    def url(self) -> str:
        """Where the file is."""
        return DOWNLOAD_URL.format(file_id=self.file_id)


RELEASES = {
    release.name: release
    for release in (
        Release("R50-FPN-1x", "released/R50-FPN", "1IHNEs7PLGaw2gftHzMIOAxFzlYVPMc26", "COCO test-dev mask AP 37.0"),
        Release("R50-FPN-3x", "released/R50-FPN", "1EA9pMdUK6Ad9QsjaZz0g5jqbo_JkqtME", "COCO test-dev mask AP 39.2"),
        Release(
            "R50-FPN-DCN-3x", "released/R50-FPN-DCN", "1N0C_ZhES7iu8qEPG2mrdxf8rWteemxQD", "COCO test-dev mask AP 40.5"
        ),
        Release("R101-FPN-3x", "released/R101-FPN", "1Jn27jTpFFWjuX22xvR1upP99nOXfZ1nk", "COCO test-dev mask AP 40.5"),
        Release(
            "R101-FPN-DCN-3x",
            "released/R101-FPN-DCN",
            "1TpVQksuaXlhioD3WqWppX84MB-l_Eb7-",
            "COCO test-dev mask AP 42.2",
        ),
        Release("Swin-T-FPN-3x", "released/Swin-T-FPN", "1ezIxmwdMl_cC7gCPEqtLL6zlSYd3R9wA", "COCO val mask AP 43.5"),
        Release("Swin-B-FPN-3x", "released/Swin-B-FPN", "1XkEwTMiyADYfvniIrBIDX7RPTSLI4fys", "COCO val mask AP 45.5"),
        Release(
            "X101-FPN-LVIS-1x", "released/X101-FPN-LVIS", "1L_bEZf-jJcQqmeCHOf4-c0eOq71cCdis", "LVIS v0.5 mask AP 29.2"
        ),
    )
}
# The architectures among them; schedules differ only in their weights.
ARCHITECTURES = tuple(dict.fromkeys(release.config for release in RELEASES.values()))


def find_release(name: str) -> Release:
    """The release of a name, whatever its case.

    Raises:
        ValueError: no such release; the message lists them.
    """
    for release in RELEASES.values():
        if release.name.lower() == name.lower():
            return release
    raise ValueError(f"no released checkpoint {name!r}; expected one of {', '.join(RELEASES)}")
