"""First module of a process that joblib starts for points: it ends with the command.

It goes on as the process that joblib wanted. `patchcore.commands.sweep.shield_workers` puts it in
between.
"""

from runpy import run_module

from patchcore.commands import end_with_parent

WORKER = "patchcore.commands.worker"
JOBLIBS_WORKER = "joblib.externals.loky.backend.popen_loky_posix"

if __name__ == "__main__":
    end_with_parent()
    run_module(JOBLIBS_WORKER, run_name="__main__", alter_sys=True)
