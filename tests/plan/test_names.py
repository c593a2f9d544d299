"""No gate of a user's can be called as anything that host code or kernels call by name."""

from __future__ import annotations

from mcgen.emit.text.private_names import BUILT, taken
from mcgen.plan.host import Let, buffers, statements
from mcgen.plan.plan import planned, scheduled
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.meaning import meaning


def test_names_of_passes_are_taken() -> None:
    for path in shipped().values():
        understood = meaning(load(path))
        schedule = scheduled(planned(understood))
        found = {buffer.name for one in schedule.passes for buffer in buffers(one)}
        numbers = (s.targets for one in schedule.passes for s in statements(one.body) if isinstance(s, Let))
        found |= {target.removeprefix("x.") for targets in numbers for target in targets.split(", ")}
        found |= {name for kernel in schedule.kernels.values() for name in kernel.arguments}
        free = {name for name in found - {*understood.inputs} if name not in taken() and not BUILT.search(name)}
        assert not free, path.stem
