"""What a user can get wrong.

Every error here is raised at the border (config, files, databases, data), names the value, the rule and the
remedy in one line, and ends the command line with exit code 2. Anything else that is raised is our bug.

    PeftStudyError
    |-- ConfigError      a key, a value or a combination that cannot be
    |-- DataError        a problem, a line or a file of data that cannot be read
    |-- CheckpointError  a checkpoint that is missing, truncated or of another kind
    |-- KernelError      a kernel that this machine cannot compile or load
    |-- SandboxError     a machine that cannot hold in programs that nobody has read
    `-- StoreError       a database or folder that belongs to something else, or a disk that is full
"""


class PeftStudyError(Exception):
    """Base of all errors a user can cause; its text is one line that says what to do."""


class ConfigError(PeftStudyError, ValueError):
    """A key, a value or a combination of values that cannot be."""


class DataError(PeftStudyError, ValueError):
    """Data that cannot be read or made."""


class CheckpointError(PeftStudyError, OSError):
    """A checkpoint that is missing, truncated or of another kind."""


class KernelError(PeftStudyError, OSError):
    """A kernel that this machine cannot compile or load."""


class SandboxError(PeftStudyError, OSError):
    """A machine that cannot hold in programs that nobody has read."""


class StoreError(PeftStudyError, OSError):
    """A database or folder that belongs to something else, or a disk that is full."""
