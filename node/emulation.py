"""The device that a node pretends to be, for measuring: one for all draft models or one each."""

from specedge_p2p.lm.emulated import EmulatedDevice, PaddingTally, load_profile


class EmulatedDrafts:
    """What the levels of each draft model are padded to, counted together.

    Args:
        text: "PROFILE", or "MODEL=PROFILE,MODEL=PROFILE"; "" for none.
        stretch: real seconds that an emulated second takes.

    Raises ProfileError for a profile that is not there, or has no levels.
    """

    def __init__(self, text: str, stretch: float) -> None:
        self.tally = PaddingTally()
        self._devices: dict[str, EmulatedDevice] = {}
        for part in filter(None, text.split(",")):
            model, _, name = part.rpartition("=")
            profile = load_profile(name)
            profile.level_cost()  # one without levels shows at once
            self._devices[model] = EmulatedDevice(profile, stretch, tally=self.tally)

    def device(self, model: str) -> EmulatedDevice | None:
        """Where the draft model of this name runs; None for the real device."""
        return self._devices.get(model, self._devices.get(""))
