"""Whether a base still has the weights that a trial was begun on; without torch, so that this is soon known."""

import json
from pathlib import Path

from peft_study.errors import StoreError
from peft_study.models.places import fingerprint
from peft_study.study.config import TrialConfig


class BaseWeights:
    """The weights that bases have now, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def refuse_others(self, config: TrialConfig, begun: str, *, what: str, remedy: str) -> None:
        """Raise StoreError where the base of `config` has other weights than `begun`, which `what` was made from."""
        base = config.base_folder
        if base not in self._known:
            self._known[base] = fingerprint(base)
        now = self._known[base]
        # A base that is gone spoils nothing that is finished; loading says that it is missing.
        if begun and now and now != begun:
            raise StoreError(
                f"{what} was made from other weights ({begun}) than {base} has now ({now}); put that base back, or "
                f"{remedy}"
            )

    def check(self, folder: Path, config: TrialConfig, remedy: str) -> None:
        """Raise StoreError where the trial in `folder`, if any, was begun on other weights than its base has now."""
        path = folder / "provenance.json"
        if path.is_file():
            begun = json.loads(path.read_text())["base_weights"]
            self.refuse_others(config, begun, what=str(folder), remedy=remedy)
