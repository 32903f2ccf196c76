"""The paper's pictures for any image: masks by depth, incoherent regions, attention, failures (figures 4, 6, 12-14)."""
