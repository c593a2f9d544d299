def streamed_plan_text(plan: StreamedPlan) -> str:
    """The plan in words: each choice with the property it follows from and what it costs."""
    lines = [f"{what}: {chosen}\n    {why}" for what, chosen, why in plan.choices()]
    forward, backwards = plan.launches
    launches = [f"forward, {len(forward)}: {', '.join(forward)}", f"backward, {len(backwards)}: {', '.join(backwards)}"]
    loops = [f"{name}: {text}" for name in plan.phased if (text := _loops(plan.programs[name]))]
    listed = [
        "",
        "Launches",
        *(f"  {line}" for line in launches),
        "",
        "Loops over hidden units",
        *(f"  {x}" for x in loops),
    ]
    return "\n".join([*lines, *listed])


def _loops(program: Program) -> str:
    """The loops of a program: what is summed over the hidden units, and what is stored."""
    return "; ".join(map(_loop, Phases(program).phases))


def _loop(phase: Phase) -> str:
    parts = [f"{len(phase.sums)} sums" if phase.sums else "", f"{len(phase.rows)} rows kept" if phase.rows else ""]
    parts.append(f"stores {', '.join(phase.outputs)}" if phase.outputs else "")
    return f"{phase.axis} {', '.join(filter(None, parts))}"
