"""One run that changes mesh, microbatch and number of processes at each resume."""

import socket

from tests.faults.lab import Lab, Process, Row, loss_difference, steps

TOLERANCE = 1e-5  # relative, of each step's loss: sums over devices and microbatches are added in another order
_NO_RAMP = ("--config.train.ramp_tokens=0",)  # a ramp moves in microbatches, so another microbatch is another run
EVERY = 8

# What each part of the run is trained on: processes, devices of each, overrides.
PARTS = {
    "1 device": (1, 1, ()),
    "2 devices, fsdp": (1, 2, ("--config.mesh.fsdp=2",)),
    "4 devices, tensor, microbatch 16": (1, 4, ("--config.mesh.tensor=2", "--config.train.microbatch_sequences=16")),
    "8 devices, fsdp and tensor": (1, 8, ("--config.mesh.fsdp=4", "--config.mesh.tensor=2")),
    "2 processes": (2, 2, ("--config.mesh.fsdp=4",)),
    "2 processes, tensor over both": (2, 2, ("--config.mesh.tensor=2", "--config.mesh.fsdp=2")),
    "1 device, microbatch 4": (1, 1, ("--config.train.microbatch_sequences=4",)),
}


def start(lab: Lab, run_dir, processes: int, *overrides: str) -> list[Process]:
    """Starts a run of so many processes on this machine."""
    if processes == 1:
        return [lab.start(run_dir, *overrides)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--config.distributed.coordinator_address=127.0.0.1:{free.getsockname()[1]}"
    joined = (*overrides, address, f"--config.distributed.num_processes={processes}")
    return [lab.start(run_dir, *joined, f"--config.distributed.process_id={i}") for i in range(processes)]


def resume_elsewhere(lab: Lab) -> Row:
    """Each part of the run on another mesh, in an order that goes up and down."""
    row = Row(
        "resume on another mesh (1, 2, 4, 8 devices), microbatch, number of processes",
        f"same batches; losses within {TOLERANCE:.0e} relative of one device's",
    )
    names = list(PARTS) if not lab.quick else ["1 device", "8 devices, fsdp and tensor"]
    total = EVERY * len(names)
    reference, run_dir = lab.reference(*_length(total)), lab.new("meshes")
    for number, name in enumerate(names, 1):
        lab.note(name)
        processes, devices, overrides = PARTS[name]
        given = (*_length(EVERY * number), f"--config.mesh.cpu_devices={devices}", *overrides)
        started = start(lab, run_dir, processes, *given)
        for process in started:
            row.check(process.wait() == 0, f"{name}: {process.last_line}")
        row.check(number == 1 or f"from step {EVERY * (number - 1)}" in started[0].output, f"{name}: did not resume")
        row.cases += 1
    # Validations at the end of each part are those of the reference, which has them at the same steps.
    row.check_same(run_dir, reference, "other meshes", TOLERANCE)
    row.figures = f"greatest difference {loss_difference(run_dir, reference):.1e}"
    return row


def _length(count: int) -> tuple[str, ...]:
    return (*steps(count + 4, EVERY), *_NO_RAMP)
